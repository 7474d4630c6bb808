"""The dashboard's figures, as SVG texts that need nothing from outside. Needs no torch."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pdp.reports.look import WIDTH, as_svg, hatch_of, look_of, new_figure, style


def scatter(frame: pd.DataFrame, x: str, x_title: str, title: str) -> str:
    """The hard metric against `x`, a point a run, a line through the means over seeds of each method."""
    figure, axes = _figure(title, x_title, f"{frame.metric_name.iloc[0]}, hard, last epoch")
    for method, group in frame.groupby("method"):
        look = look_of(str(method))
        axes.plot(group[x], group.metric, alpha=0.45, markersize=5, **look | {"linestyle": "none"})
        means = group.groupby("cell")[[x, "metric"]].mean().sort_values(x)
        axes.plot(means[x], means.metric, linewidth=1.4, markersize=7, label=str(method), **look)
    axes.legend(fontsize=8)
    return as_svg(figure)


def shares(layers: dict[str, pd.DataFrame], title: str) -> str:
    """The share of zeros of each prunable layer, in the model's order; a line for each label."""
    figure, axes = _figure(title, "", "share of zeros")
    for label, frame in layers.items():
        look = look_of(label.split()[0])
        axes.plot(range(len(frame)), frame.sparsity, linewidth=1, markersize=4, label=label, **look)
    longest: pd.DataFrame = max(layers.values(), key=len)
    axes.set_xticks(range(len(longest)), list(longest.name), rotation=90, fontsize=5)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize=8)
    return as_svg(figure)


def bars(means: pd.Series, title: str, y_title: str) -> str:
    """A bar a method."""
    figure, axes = _figure(title, "", y_title, width=WIDTH / 2)
    names = [str(one) for one in means.index]
    drawn = axes.bar(names, list(means), color=[look_of(one)["color"] for one in names], edgecolor="white")
    for bar, name in zip(drawn, names, strict=True):
        bar.set_hatch(hatch_of(name))
    axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    return as_svg(figure)


def curves(histories: dict[str, list[dict[str, Any]]], key: str, title: str) -> str:
    """A value of the history against the epoch, a line a run."""
    figure, axes = _figure(title, "epoch", key)
    for label, lines in histories.items():
        points = [(line["epoch"] + 1, line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), linewidth=1.2, marker=".", label=label)
    if axes.lines and len(histories) <= 12:
        axes.legend(fontsize=7)
    return as_svg(figure)


def _figure(title: str, x_title: str, y_title: str, width: float = WIDTH) -> tuple[Figure, Any]:
    with style():
        figure = new_figure(width)
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x_title)
        axes.set_ylabel(y_title)
    return figure, axes
