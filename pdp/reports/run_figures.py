"""The two pictures of a finished run, made from its own files: its curves and its layers. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pdp.reports.look import WIDTH, as_png, new_figure, style
from pdp.reports.runs import read_history, read_layers
from pdp.reports.sheet import is_fraction
from pdp.runs.record import Record, read_record
from pdp.wording import gone

CURVES, LAYERS = "curves.png", "layers.png"


def draw_run(path: Path) -> list[Path]:
    """Writes curves.png and layers.png of the finished run at `path` as far as its files allow; returns their paths."""
    record = read_record(path)
    drawn = {CURVES: _curves(record, read_history(path)), LAYERS: _layers(record, read_layers(path))}
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            beside = path / f".{name}"
            beside.write_bytes(as_png(figure))
            written.append(beside.replace(path / name))
    return written


def _title(record: Record) -> str:
    return f"{record.model} on {record.data}, {record.method}, {record.pattern}, seed {record.seed}"


def _curves(record: Record, history: list[dict[str, Any]]) -> Figure | None:
    """Loss, validation metric of the hard model (hollow marks: of the soft one) and pruned share, over epochs."""
    if not history:
        return None
    name = record.metric_name
    scale = 100.0 if is_fraction(name) else 1.0
    epochs = [line["epoch"] + 1 for line in history]
    with style():
        figure = new_figure(WIDTH, 5.0)
        above, middle, below = figure.subplots(3, 1, sharex=True)
        above.set_title(_title(record))
        above.plot(epochs, [line["loss"] for line in history], marker=".", color="#000000")
        above.set_ylabel("training loss")
        middle.plot(epochs, [scale * line["metric"] for line in history], marker="o", color="#D55E00", label="hard")
        soft = [(line["epoch"] + 1, scale * line["metric_soft"]) for line in history if line.get("metric_soft")]
        if soft and record.method != "dense":
            middle.plot(*zip(*soft, strict=True), marker="o", fillstyle="none", linestyle="none", label="soft")
            middle.legend()
        middle.set_ylabel(f"validation {name}" + (", %" if scale == 100 else ""))
        key = "macs_gone" if "macs_gone" in history[0] else "sparsity"
        unit = "channel" if record.target_unit == "mac" and key == "sparsity" else record.target_unit
        below.plot(epochs, [100 * line[key] for line in history], marker=".", color="#0072B2")
        below.set_ylabel(f"{gone(unit)}, %")
        below.set_ylim(-2, 102)
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _layers(record: Record, layers: Any) -> Figure | None:
    """The zeros of every prunable layer, and its MACs before and after, in the model's order."""
    if layers is None or not len(layers) or "macs" not in layers:
        return None
    places = range(len(layers))
    with style():
        figure = new_figure(max(WIDTH, min(0.14 * len(layers), 20.0)), 5.0)
        above, below = figure.subplots(2, 1, sharex=True)
        above.set_title(_title(record))
        above.bar(places, 100 * layers.sparsity, color="#0072B2")
        above.axhline(
            100 * record.sparsity, color="#000000", linewidth=0.8, linestyle="--", label="all prunable weights"
        )
        above.set_ylim(0, 102)
        above.set_ylabel("zeros, %")
        above.legend(loc="lower right", bbox_to_anchor=(1, 1))
        below.bar(places, layers.macs / 1e6, color="#cccccc", label="dense")
        below.bar(places, layers.sparse_macs / 1e6, color="#D55E00", label="without zeros")
        below.set_ylabel("MACs, millions")
        below.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        below.set_xticks(list(places), list(layers.name), rotation=90, fontsize=5)
    return figure
