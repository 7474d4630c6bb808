"""The look of every figure: one style, readable without colour, and identical bytes for identical numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

WIDTH, HEIGHT = 7.2, 3.8  # inches
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "errorbar.capsize": 2,
    "savefig.dpi": 110,
    "svg.hashsalt": "pdp",  # keeps element names constant
    "svg.fonttype": "none",  # text stays text, which is smaller and can be searched
}
# Okabe and Ito's colours, which colour-blind readers can distinguish; lines and marks distinguish them in grey.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_LINES: tuple[Any, ...] = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (7, 2)))
_MARKS = "osD^v<>P*Xd"  # their number has no divisor in common with that of the lines
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
# A method's position determines its look, so append new ones at the end.
_METHODS = (
    *("pdp", "gmp", "str", "optg", "granet", "acdc", "cs", "dnw", "rigl", "movement", "oneshot", "pofa"),
    *("srste", "asp", "lbc", "sfp", "slimming", "chex", "dense", "pdp_annealed", "held"),
)


def looks_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A look for each label: the method's own, and for each further setting of it one that is unique here."""
    found: dict[str, dict[str, Any]] = {}
    settings = 0
    for label in labels:
        method = label.split()[0]
        found[label] = look_of(method)
        if label != method and method == "pdp":
            settings += 1
            found[label] = {
                "color": _COLOURS[settings % len(_COLOURS)],
                "linestyle": _LINES[settings % len(_LINES)],
                "marker": _MARKS[settings % len(_MARKS)],
                "fillstyle": "none",
            }
    return found


def look_of(method: str) -> dict[str, Any]:
    """Colour, line and mark of a method, the same in every figure."""
    number = _number(method)
    if number == 0:  # PDP: the only solid black line
        return {"color": "#000000", "linestyle": "-", "marker": _MARKS[0]}
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _LINES[number % len(_LINES)],
        "marker": _MARKS[number % len(_MARKS)],
    }


def hatch_of(method: str) -> str:
    """The hatch of a method's bars."""
    return _HATCHES[_number(method) % len(_HATCHES)]


def _number(method: str) -> int:
    # An unknown method gets the same look in every process.
    return _METHODS.index(method) if method in _METHODS else len(_METHODS) + sum(method.encode()) % 60


@contextmanager
def style() -> Iterator[None]:
    """Inside this context the style applies; other drawings of the process keep theirs."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure of this size in inches, without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element, without date and document type."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Keeps the layout computed during drawing, so that further drawings are identical and faster.
    figure.set_layout_engine("none")
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """The figure as PNG without the software's name, in 128 colours, which takes a third of the bytes."""
    reduced = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    with style():
        figure.set_dpi(STYLE["savefig.dpi"])
        canvas.draw()  # savefig draws twice and writes a PNG that would be read again here
    pixels = np.asarray(canvas.buffer_rgba())
    Image.fromarray(pixels).convert("RGB").quantize(128).save(reduced, format="png", optimize=True)
    return reduced.getvalue()
