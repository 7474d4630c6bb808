"""Draws each kind of figure from data frames: PDP as a solid line in every panel, with one other method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os.path import commonprefix
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pdp.reports.look import WIDTH, hatch_of, looks_of, new_figure, style
from pdp.reports.masks import MOMENTS, soft_share
from pdp.reports.sheet import is_better, is_fraction

OURS = "pdp"
_COLUMNS = 3  # panels per row
_BEYOND: Any = {"textcoords": "offset points", "fontsize": 7}  # style of the text about a mark outside its axis
Lines = dict[str, pd.DataFrame]


def _panels(number: int, height: float, share_y: bool = True) -> tuple[Figure, list[Any]]:
    """`number` axes in rows with a common x axis."""
    columns = min(number, _COLUMNS)
    rows = math.ceil(number / columns)
    figure = new_figure(WIDTH, height * rows + 0.5)
    axes = figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)
    flat = list(axes.flat)
    for spare in flat[number:]:
        # If the last row is incomplete, the panel above the gap keeps its labels.
        flat[flat.index(spare) - columns].tick_params(labelbottom=True)
        spare.remove()
    return figure, flat[:number]


def _beside(labels: list[str]) -> list[list[str]]:
    """The labels of each panel: PDP's default setting and one other; without a default, all of PDP's settings."""
    ours = [OURS] if OURS in labels else [label for label in labels if label.split()[0] == OURS]
    others = [label for label in labels if label not in ours]
    return [[other, *ours] for other in others] or [ours]


def _scale(metric_name: str) -> float:
    return 100.0 if is_fraction(metric_name) else 1.0


def _unit(metric_name: str) -> str:
    return f"{metric_name}, %" if is_fraction(metric_name) else metric_name


def against(frame: pd.DataFrame, dense: pd.DataFrame, x: str, x_title: str, metric: str) -> Figure:
    """The metric with intervals against `x`, with one panel per method, which also shows PDP."""
    with style():
        labels = sorted(set(frame.label), key=lambda one: (one.split()[0] != OURS, one))
        figure, axes = _panels(len(_beside(labels)), 1.7)
        scale, looks, limits = _scale(metric), looks_of(labels), _limits(frame, dense, metric)
        for axis, shown in zip(axes, _beside(labels), strict=True):
            for row in dense.itertuples():
                half = 0 if math.isnan(row.interval) else row.interval
                axis.axhspan(
                    scale * (row.metric - half), scale * (row.metric + half), color="#bbbbbb", alpha=0.35, lw=0
                )
                axis.axhline(scale * row.metric, color="#777777", lw=0.7)
            for label in shown:
                mine = frame[frame.label == label].sort_values(x)
                spread = scale * mine.interval.fillna(0)
                axis.errorbar(scale_x(mine[x], x), scale * mine.metric, yerr=spread, label=label, **looks[label])
                _say_what_lies_beyond(axis, scale_x(mine[x], x), scale * mine.metric, limits)
            axis.legend(loc="best")
        if scale == 1:
            _scale_wide(axes, "y", limits)
        axes[0].set_ylim(limits)
        _label(figure, axes, x_title if x != "sparsity" else "sparsity, %", _unit(metric))
        if x != "sparsity":
            _scale_wide(axes, "x", frame[x])
    return figure


def scale_x(values: pd.Series, x: str) -> pd.Series:
    """Sparsities in percent; multiply-adds in millions."""
    return 100 * values if x == "sparsity" else values / 1e6


def _scale_wide(axes: Sequence[Any], which: str, values: Sequence[float]) -> None:
    """Sets the axis `which` ("x" or "y"): logarithmic if the values differ threefold, with few plain numbers."""
    wide = max(values) > 3 * min(values)
    if wide:
        axes[0].set(**{f"{which}scale": "log"})
    for axis in axes:
        ticks = axis.xaxis if which == "x" else axis.yaxis
        ticks.set_major_locator(LogLocator(10, (1, 2, 5), numticks=9) if wide else MaxNLocator(4))
        ticks.set_minor_locator(NullLocator())
        ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _say_what_lies_beyond(axis: Any, x: pd.Series, y: pd.Series, limits: tuple[float, float]) -> None:
    """Writes at the edge which values are outside the axis."""
    for place, value in zip(x, y, strict=True):
        inwards: Any = {"ha": "left" if place <= x.median() else "right", **_BEYOND}
        if value < limits[0]:
            axis.annotate(f"▾ {value:.1f}", (place, limits[0]), (0, 3), **inwards)
        elif value > limits[1]:
            axis.annotate(f"▴ {value:.1f}", (place, limits[1]), (0, -8), **inwards)


def _limits(frame: pd.DataFrame, dense: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Limits of the axis such that a collapsed method or a wide interval of two seeds does not squeeze all others."""
    if not is_fraction(metric):
        values = pd.concat([frame.metric, dense.metric])
        return 0.9 * float(values.min()), 1.1 * min(float(values.max()), 20 * float(values.min()))
    ours = frame[frame.label == OURS].metric
    everyone = pd.concat([frame.metric, dense.metric])
    lowest = float((ours if len(ours) else everyone).min())
    room = max(float(everyone.max()) - lowest, 0.005)
    least = max(lowest - 1.5 * room, float(everyone.min()) - 0.3 * room)
    return 100 * least, min(100.4, 100 * (everyone.max() + room))


def one_target(frame: pd.DataFrame, dense: pd.DataFrame, x: str, x_title: str, metric: str) -> Figure:
    """A study with one target: against MACs a mark per method, against sparsity a row per method, with intervals."""
    with style():
        scale = _scale(metric)
        both = pd.concat([frame, dense[dense.columns.intersection(frame.columns)]], ignore_index=True)
        both = both.sort_values("metric", ignore_index=True, ascending=is_better(metric) > 0)  # best on top
        figure = new_figure(WIDTH, 0.9 + 0.25 * len(both) if x == "sparsity" else max(3.4, 0.7 + 0.17 * len(both)))
        axis = figure.add_subplot()
        looks, limits = looks_of(both.label), _limits(frame, dense, metric)
        for place, row in enumerate(both.itertuples()):
            look = looks[row.label] | {"linestyle": "none"}
            spread = 0 if math.isnan(row.interval) else scale * row.interval
            if x == "sparsity":
                axis.errorbar([scale * row.metric], [place], xerr=[spread], **look)
            else:
                axis.errorbar([getattr(row, x) / 1e6], [scale * row.metric], yerr=[spread], label=row.label, **look)
        for place, row in enumerate(both.itertuples()):
            if scale * row.metric < limits[0]:
                if x == "sparsity":
                    axis.annotate(f"◂ {scale * row.metric:.1f}", (limits[0], place), (3, 0), **_BEYOND, va="center")
                else:
                    axis.annotate(f"▾ {scale * row.metric:.1f}", (getattr(row, x) / 1e6, limits[0]), (4, 3), **_BEYOND)
        if scale == 1:
            _scale_wide([axis], "x" if x == "sparsity" else "y", limits)
        (axis.set_xlim if x == "sparsity" else axis.set_ylim)(limits)
        if x == "sparsity":
            axis.set_yticks(range(len(both)), list(both.label))
            axis.set_xlabel(_unit(metric))
        else:
            _scale_wide([axis], "x", both[x])
            axis.set_xlabel(x_title)
            axis.set_ylabel(_unit(metric))
            handles, words = axis.get_legend_handles_labels()
            figure.legend(handles[::-1], words[::-1], loc="outside right upper")
    return figure


def layers(lines: Lines, words: str) -> Figure:
    """One value per layer, in the model's order: `mean`, `min` and `max` over seeds."""
    with style():
        labels = sorted(lines, key=lambda one: (one.split()[0] != OURS, one))
        names, looks = list(max(lines.values(), key=len).index), looks_of(labels)
        stem = commonprefix(names)
        shown_names = [name[stem.rfind(".") + 1 :] for name in names]  # without a prefix that all names share
        figure, axes = _panels(len(_beside(labels)), 1.2 + 0.035 * max(map(len, shown_names)))
        for axis, shown in zip(axes, _beside(labels), strict=True):
            for label in shown:
                mine = lines[label].reindex(names)
                places = np.arange(len(names))
                look = looks[label] | {"linewidth": 1, "zorder": 2 if label == OURS else 3}
                axis.plot(places, mine["mean"], label=fill(label, 26), markersize=2.5, **look)
                axis.fill_between(places, mine["min"], mine["max"], color=look["color"], alpha=0.15, lw=0)
            axis.legend(loc="best")
            axis.set_xticks(range(len(names)), shown_names, rotation=90, fontsize=4.5 if len(names) < 40 else 3)
        _label(figure, axes, "", words)
    return figure


def epochs(lines: Lines, metric: str) -> Figure:
    """The hard and the soft metric over epochs, and the sparsity in grey below; one panel per method."""
    with style():
        labels = sorted(lines, key=lambda one: (one != OURS, one))
        figure, axes = _panels(len(labels), 1.6)
        scale, looks = _scale(metric), looks_of(labels)
        for axis, label in zip(axes, labels, strict=True):
            frame, look = lines[label], looks[label]
            single = frame.epoch.nunique() == 1  # a line would not show a single point
            _band(axis, frame, "metric", look if single else look | {"marker": ""}, "hard", scale)
            if "metric_soft" in frame and frame.metric_soft.notna().any():
                soft = frame.dropna(subset=["metric_soft"]).astype({"metric_soft": float})
                drawn = look | {"linestyle": "none", "fillstyle": "none"}
                _band(axis, soft, "metric_soft", drawn, "soft", scale)
            if scale == 1:
                axis.set_yscale("log")
            other = axis if scale == 100 else axis.twinx()
            _band(
                other, frame, "sparsity", {"color": "#777777", "linestyle": (0, (1, 1)), "marker": "."}, "sparsity", 100
            )
            if other is not axis:
                other.set_ylim(0, 105)
                other.set_ylabel("sparsity, %", fontsize=7)
                axis.plot([], [], color="#777777", linestyle=(0, (1, 1)), marker=".", label="sparsity")
            axis.set_title(fill(label, 30), fontsize=8 if len(label) > 24 else None)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if single:
                axis.set_xlim(0.5, 1.5)
                axis.set_xticks([1])
            axis.legend(loc="lower right")
        _label(figure, axes, "epoch", f"{_unit(metric)}; sparsity, %" if scale == 100 else f"{_unit(metric)} (log)")
    return figure


def revived(panels: dict[str, Lines]) -> Figure:
    """The share of weights that came back in each epoch; one panel per target, one line per label."""
    with style():
        figure, axes = _panels(len(panels), 2.0)
        for axis, (name, lines) in zip(axes, panels.items(), strict=True):
            looks = looks_of(lines)
            for label, frame in sorted(lines.items(), reverse=True):
                _band(axis, frame, "revived", looks[label], label, 100.0)
            axis.set_title(f"target {name}")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.legend(loc="best")
        _label(figure, axes, "epoch", "weights that came back, %")
    return figure


def weights(values: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Densities of weights; one row per layer, one column per moment."""
    with style():
        figure = new_figure(WIDTH, 1.25 * len(values) + 0.4)
        grid = figure.subplots(len(values), len(MOMENTS), sharex="row", sharey="row", squeeze=False)
        for row, (layer, moments) in zip(grid, values.items(), strict=True):
            for axis, (moment, (edges, density)) in zip(row, moments.items(), strict=True):
                axis.stairs(density, edges, fill=True, facecolor="#cccccc", edgecolor="#000000", lw=0.8)
                axis.set_yscale("log")
                axis.set_title(f"{layer}, {MOMENTS[moment]}", fontsize=7)
        figure.supxlabel("stored weight", fontsize=8)
        figure.supylabel("density (log)", fontsize=8)
    return figure


def masks(lines: Lines) -> Figure:
    """Shares of mask values in equal bins; one panel per moment, the bars of temperatures side by side."""
    with style():
        figure, axes = _panels(len(MOMENTS), 2.3)
        for axis, moment in zip(axes, MOMENTS, strict=True):
            for place, (label, frame) in enumerate(lines.items()):
                bins = len(frame)
                width = 1 / bins / len(lines)
                left = np.arange(bins) / bins + place * width
                words = f"{label}: {100 * soft_share(frame[moment]):.2f} % between"
                look = {"facecolor": f"{0.75 - 0.5 * place / max(len(lines) - 1, 1):.2f}", "edgecolor": "black"}
                drawn = axis.bar(left, 100 * frame[moment], width, align="edge", label=words, linewidth=0.4, **look)
                for bar in drawn:
                    bar.set_hatch(hatch_of(OURS) if place == 0 else hatch_of(("gmp", "str", "optg")[(place - 1) % 3]))
            axis.set_yscale("log")
            axis.set_title(MOMENTS[moment])
            axis.set_ylim(top=100 * 10 ** (0.8 * len(lines)))  # room for the legend
            axis.legend(loc="upper center")
        _label(figure, axes, "mask value", "weights, % (log)")
    return figure


def _band(axis: Any, frame: pd.DataFrame, column: str, look: dict[str, Any], label: str, scale: float) -> None:
    """The mean over seeds in each epoch, with a band from the minimum to the maximum."""
    by_epoch = scale * frame.groupby("epoch")[column].agg(["mean", "min", "max"])
    axis.plot(by_epoch.index + 1, by_epoch["mean"], label=label, **look)
    if look["linestyle"] != "none":
        axis.fill_between(by_epoch.index + 1, by_epoch["min"], by_epoch["max"], color=look["color"], alpha=0.15, lw=0)


def _label(figure: Figure, axes: list[Any], x_title: str, y_title: str) -> None:
    figure.supxlabel(x_title, fontsize=8)
    figure.supylabel(y_title, fontsize=8)
