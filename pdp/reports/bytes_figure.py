"""Accuracy against bytes on the disk: dense, pruned, quantized and both, each in the form that takes least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pdp.reports.look import look_of, new_figure, style
from pdp.reports.sheet import is_fraction, target
from pdp.reports.statistics import interval, mean

IN_TURN = "_in_turn"  # a study whose runs go on from those of the study called so without it


def together(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with those of a study in turn among the runs that it goes on from."""
    return runs.assign(study=runs.study.str.removesuffix(IN_TURN))


def least_bytes(row: Any) -> tuple[int, str] | None:
    """What a run's shipped model takes at least, and in which form; None of a record that does not say."""
    forms: dict[str, int] = row.bytes_on_disk or {}
    kind = "fp32" if row.quantize == "none" else f"int{(row.quantization or {}).get('weight_bits')}"
    found = {form: count for form, count in forms.items() if form.split("_")[0] == kind}
    return min((count, form) for form, count in found.items()) if found else None


def points(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a method and target: label, method, bytes, form, metric, interval, seeds; the fewest bytes first."""
    rows = []
    for (method, pattern, share), group in runs.groupby(["method", "pattern", "target_sparsity"], sort=True):
        sizes = [least for row in group.itertuples() if (least := least_bytes(row))]
        if sizes:
            pruned = "" if pattern == "none" else f", {pattern} {target(share)}"
            rows.append(
                {
                    "label": f"{method}{pruned}",
                    "method": method,
                    "bytes": mean([count for count, _ in sizes]),
                    "form": sizes[0][1],
                    "metric": mean(group.metric.tolist()),
                    "interval": interval(group.metric.tolist()),
                    "seeds": len(group),
                }
            )
    columns = ["label", "method", "bytes", "form", "metric", "interval", "seeds"]
    return pd.DataFrame(rows, columns=columns).sort_values("bytes", ignore_index=True)


def draw(runs: pd.DataFrame) -> Iterator[tuple[Figure, str]]:
    """The figure of one study's runs of one model and its caption; nothing where none was quantized."""
    first, frame = runs.iloc[0], points(runs)
    if (runs.quantize == "none").all() or len(frame) < 2:
        return
    tall = 100 if is_fraction(first.metric_name) else 1
    with style():
        figure = new_figure()
        axes = figure.subplots()
        for row in frame.itertuples():
            look = look_of(row.method) | {"linestyle": "none"}
            words = f"{row.label} ({row.form.replace('_', ' ')})"
            error = tall * row.interval if row.interval == row.interval else None
            axes.errorbar(row.bytes / 1000, tall * row.metric, error, label=words, **look)
        axes.set_xscale("log")
        axes.set_xlabel("kB on the disk, the whole model")
        axes.set_ylabel(f"{first.metric_name}{', %' if tall == 100 else ''}")
        axes.legend(fontsize=7)
    caption = (
        f"{first.metric_name} of what ships (hard, quantized where asked; test set, last epoch) against bytes on the "
        f"disk, each in the form that takes least: {first.model} on {first.data}, study {first.study}. Means over "
        "seeds with 95 % intervals (Student t)."
    )
    yield figure, caption
