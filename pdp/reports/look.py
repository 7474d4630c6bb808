"""How every figure looks: one style, readable without colour, and the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
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
    "svg.hashsalt": "pdp",  # element names do not change from one drawing to the next
    "svg.fonttype": "none",  # text stays text: smaller files, and readers can search it
}
# Okabe and Ito's colours, told apart by the colour-blind; lines and marks tell them apart in grey.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_LINES: tuple[Any, ...] = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (7, 2)))
_MARKS = "osD^v<>P*Xd"  # as many as have no divisor in common with the lines
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
# A method's place decides its look: append new ones.
_METHODS = (
    *("pdp", "gmp", "str", "optg", "granet", "acdc", "cs", "dnw", "rigl", "movement", "oneshot", "pofa"),
    *("srste", "asp", "lbc", "sfp", "slimming", "chex", "dense", "pdp_annealed", "held"),
)


def looks_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A look for each label: a method's own, and for each further setting of it one that nothing else here has."""
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
    if number == 0:  # PDP: the one solid black line
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
    # One that is not known yet looks the same in every process.
    return _METHODS.index(method) if method in _METHODS else len(_METHODS) + sum(method.encode()) % 60


@contextmanager
def style() -> Iterator[None]:
    """The style holds inside; whatever else the process draws keeps its own."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure, in inches, bound to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element, with neither date nor document type."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # Keeps the layout found while drawing, so that further drawings are the same and quicker.
    figure.set_layout_engine("none")
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, without the name of the software that drew it, in 128 colours: a third of the bytes."""
    drawn, reduced = io.BytesIO(), io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(128).save(reduced, format="png", optimize=True)
    return reduced.getvalue()
