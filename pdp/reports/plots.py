"""The dashboard's figures, as self-contained SVG texts. Needs no torch."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pdp.reports.look import WIDTH, as_svg, hatch_of, look_of, new_figure, style
from pdp.reports.sheet import is_fraction


def scatter(frame: pd.DataFrame, x: str, x_title: str, title: str) -> str:
    """The hard metric against `x`: one point per run, and a line through the means over seeds of each method.

    Dense runs are a line across the figure, because their sparsity is not a choice.
    """
    metric = str(frame.metric_name.iloc[0])
    tall = 100.0 if is_fraction(metric) else 1.0
    wide = {"sparsity": 100.0, "macs_sparse": 1e-6}.get(x, 1.0)
    figure, axes = _figure(title, x_title, f"{_unit(metric)}, hard, last epoch")
    for method, group in frame.groupby("method"):
        look = look_of(str(method))
        if method == "dense":
            axes.axhline(tall * group.metric.mean(), linewidth=1.2, linestyle="--", color="#777777", label="dense")
            continue
        axes.plot(wide * group[x], tall * group.metric, alpha=0.45, markersize=5, **look | {"linestyle": "none"})
        means = group.groupby("cell")[[x, "metric"]].mean().sort_values(x)
        axes.plot(wide * means[x], tall * means.metric, linewidth=1.4, markersize=7, label=str(method), **look)
    if x == "sparsity":
        axes.set_xlim(_at_least(axes.get_xlim(), 2.0, -1.0, 101.0))
    if is_fraction(metric):
        axes.set_ylim(_at_least(axes.get_ylim(), 1.0, -1.0, 100.3))
    axes.ticklabel_format(useOffset=False)
    axes.legend(fontsize=8)
    return as_svg(figure)


def _at_least(limits: tuple[float, float], span: float, least: float, most: float) -> tuple[float, float]:
    """An axis in percent, within bounds and at least `span` wide, so that a hundredth of a point does not fill it."""
    low, high = limits
    more = max(0.0, span - (high - low)) / 2
    return max(least, low - more), min(most, high + more)


def _unit(metric_name: str) -> str:
    return f"{metric_name}, %" if is_fraction(metric_name) else f"{metric_name} (lower is better)"


def shares(layers: dict[str, pd.DataFrame], title: str) -> str:
    """The share of zeros of each prunable layer, in the model's order; one line per label."""
    figure, axes = _figure(title, "", "zeros, %")
    for label, frame in layers.items():
        look = look_of(label.split()[0])
        axes.plot(range(len(frame)), 100 * frame.sparsity, linewidth=1, markersize=4, label=label, **look)
    longest: pd.DataFrame = max(layers.values(), key=len)
    axes.set_xticks(range(len(longest)), list(longest.name), rotation=90, fontsize=5)
    axes.set_ylim(-2, 102)
    axes.legend(fontsize=8)
    return as_svg(figure)


def bars(means: pd.Series, title: str, y_title: str) -> str:
    """One bar per method."""
    figure, axes = _figure(title, "", y_title, width=WIDTH / 2)
    names = [str(one) for one in means.index]
    drawn = axes.bar(names, list(means), color=[look_of(one)["color"] for one in names], edgecolor="white")
    for bar, name in zip(drawn, names, strict=True):
        bar.set_hatch(hatch_of(name))
    axes.tick_params(axis="x", labelrotation=45, labelsize=8)
    return as_svg(figure)


def curves(histories: dict[str, list[dict[str, Any]]], key: str, title: str) -> str:
    """A value of the history (a fraction, unless it is a perplexity or a loss) against the epoch; one line per run."""
    names = {name for lines in histories.values() for line in lines for name in list(line.get("metrics") or ())[:1]}
    fractions = key != "metric" or all(is_fraction(name) for name in names)
    figure, axes = _figure(title, "epoch", f"{key}, %" if fractions else key)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale = 100.0 if fractions else 1.0
    for label, lines in histories.items():
        points = [(line["epoch"] + 1, scale * line[key]) for line in lines if line.get(key) is not None]
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
