"""Accuracy against latency: what scripts/benchmark_latency.py timed of a study, with its records' metric."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pdp.errors import Refusal
from pdp.reports.look import HEIGHT, look_of, new_figure, style
from pdp.reports.sheet import is_fraction, target
from pdp.reports.statistics import interval, mean

_KEY = ["method", "pattern", "target_sparsity"]
_SAME = 0.005  # targets that differ less are one: a pattern may prune a little more or less than it was asked
_FILLS = {"onnxruntime": "full", "OpenVINO": "none", "OpenVINO, sparse weights": "left"}
_COLUMNS = (
    *("model", "data", "method", "pattern", "target_sparsity", "engine", "batch"),
    *("latency_ms", "quartiles_ms", "speedup", "bytes"),
)


def read_latency(folder: Path, study: str) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The rows of <folder>/latency_<study>.json and the machine that they are of; None if there is no such file.

    Raises `Refusal` for a file of another kind.
    """
    path = folder / f"latency_{study}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = [{column: row[column] for column in _COLUMNS} for row in values["results"]]
        return pd.DataFrame(rows, columns=list(_COLUMNS)), dict(values["machine"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(
            f"{path} cannot be read ({type(error).__name__}: {error}): make it again by scripts/benchmark_latency.py"
        ) from None


def points(runs: pd.DataFrame, timed: pd.DataFrame) -> pd.DataFrame:
    """A row a method, target, engine and batch that is in both; of several settings under one name the mean.

    Columns: label, method, engine, batch, latency_ms with its quartiles low and high, speedup (over dense float32),
    bytes of the file, metric, interval, seeds.
    """
    first = runs.iloc[0]
    timed = timed[(timed.model == first.model) & (timed.data == first.data)]
    rows = []
    for (method, pattern, share), group in runs.groupby(_KEY, sort=True):
        near = (timed.target_sparsity - share).abs() < _SAME
        mine = timed[(timed.method == method) & (timed.pattern == pattern) & near]
        for (batch, engine), times in mine.groupby(["batch", "engine"], sort=False):
            pruned = "" if pattern == "none" else f", {pattern} {target(share)}"
            rows.append(
                {
                    "label": f"{method}{pruned}",
                    "method": method,
                    "engine": engine,
                    "batch": int(batch),
                    "latency_ms": mean(times.latency_ms.tolist()),
                    "low": mean([low for low, _ in times.quartiles_ms]),
                    "high": mean([high for _, high in times.quartiles_ms]),
                    "speedup": mean([math.nan if one is None else one for one in times.speedup]),
                    "bytes": mean(times.bytes.tolist()),
                    "metric": mean(group.metric.tolist()),
                    "interval": interval(group.metric.tolist()),
                    "seeds": len(group),
                }
            )
    columns = ["label", "method", "engine", "batch", "latency_ms", "low", "high", "speedup", "bytes"]
    frame = pd.DataFrame(rows, columns=[*columns, "metric", "interval", "seeds"])
    return frame.sort_values(["batch", "latency_ms"], ignore_index=True)


def draw(runs: pd.DataFrame, benchmarks: Path) -> Iterator[tuple[Figure, str]]:
    """The figure of one study's runs of one model and its caption, a panel a batch; nothing where none is timed."""
    first = runs.iloc[0]
    found = read_latency(benchmarks, first.study)
    frame = points(runs, found[0]) if found else pd.DataFrame()
    if found is None or frame.empty:
        return
    machine = found[1]
    tall = 100 if is_fraction(first.metric_name) else 1
    batches = sorted(set(frame.batch))
    engines = [engine for engine in _FILLS if engine in set(frame.engine)]
    with style():
        figure = new_figure(height=HEIGHT + 0.5)
        panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        handles: dict[str, Any] = {}
        for axes, batch in zip(panels, batches, strict=True):
            for row in frame[frame.batch == batch].itertuples():
                look = look_of(row.method) | {"linestyle": "none", "fillstyle": _FILLS.get(row.engine, "full")}
                error = tall * row.interval if row.interval == row.interval else None
                spread = [[row.latency_ms - row.low], [row.high - row.latency_ms]]
                drawn = axes.errorbar(row.latency_ms, tall * row.metric, error, spread, **look)
                if row.engine == engines[0]:
                    handles.setdefault(row.label, drawn)
            axes.set_xlim(left=0)
            axes.set_xlabel(f"ms of a sample, batch {batch}")
        panels[0].set_ylabel(f"{first.metric_name}{', %' if tall == 100 else ''}")
        for engine in engines if len(engines) > 1 else ():
            grey = {"color": "#7F7F7F", "linestyle": "none", "marker": "s", "fillstyle": _FILLS[engine]}
            handles[engine] = panels[0].plot([], [], **grey)[0]
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    threads = machine.get("threads")
    caption = (
        f"{first.metric_name} of what ships (hard, quantized where asked; test set, last epoch) against the time of a "
        f"forward: {first.model} on {first.data}, study {first.study}. Means over seeds with 95 % intervals (Student "
        f"t); medians of rounds in which every model had its turn, with quartiles, {machine.get('processor')}, "
        f"{threads} thread{'' if threads == 1 else 's'}, models of the same shapes and shares of zeros with weights of "
        "chance."
    )
    yield figure, caption
