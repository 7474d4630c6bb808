"""One table of a study while it runs: metric with interval, sparsity, MACs and the cost of training."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from pdp.reports.cost import ratios
from pdp.reports.runs import read_runs, revised
from pdp.reports.sheet import is_better, percent, score, target
from pdp.reports.statistics import median, summarise
from pdp.runs.record import RECORD

_KEYS = ["pattern", "target_sparsity", "method"]
_SETTING = ["model", "data", "data_fingerprint", "allocation", "recipe", "schedule", "method_options"]


def read_study(results: Path, study: str) -> pd.DataFrame:
    """Every record kept under a study's name, as from `read_runs`."""
    folder = results / "records" / study
    return read_runs(sorted(path.parent for path in folder.rglob(RECORD)), study)


def study_table(runs: pd.DataFrame, timed: dict[str, float] | None = None) -> pd.DataFrame:
    """One row per pattern, target and method of one study, sorted by these and then by metric.

    Columns: pattern, target, method, metric_name, seeds, metric, interval (half of the 95 % interval), soft, sparsity,
    macs_sparse (means over seeds), step_ratio (time of a step relative to the dense one: from `timed` by method if it
    is there, else the median over seeds of the runs' own, which depends on the load of the machine), mask_ms (median of
    the pruner's calls between two steps), extra_memory_mb (median minus the dense run's), extra_parameters.
    """
    beside = ratios(runs)
    beside["method"] = [
        f"{row.method} (revision {row.method_revision})" if revised(row) else row.method for row in beside.itertuples()
    ]
    beside["method"] = _told_apart(beside)
    # In a study of one pattern the dense run comes first, whatever the pattern is.
    beside["pattern"] = beside.pattern.where(beside.pattern != "none", "")
    values = ["metric", "metric_soft", "sparsity", "macs_sparse"]
    frame = summarise(beside, [*_KEYS, "metric_name"], values)
    groups = {key: group for key, group in beside.groupby(_KEYS)}
    mine = [groups[key] for key in frame[_KEYS].itertuples(index=False, name=None)]
    names = {"target_sparsity": "target", "metric_mean": "metric", "metric_interval": "interval"}
    names |= {"metric_soft_mean": "soft", "sparsity_mean": "sparsity", "macs_sparse_mean": "macs_sparse"}
    frame = frame.rename(columns=names)
    frame["step_ratio"] = [(timed or {}).get(one.method.iloc[0], median(one.step_ratio.dropna())) for one in mine]
    frame["mask_ms"] = [median(one.mask_ms_median) for one in mine]
    frame["extra_memory_mb"] = [median(one.memory_difference.dropna()) for one in mine]
    frame["extra_parameters"] = [int(one.extra_parameters.iloc[0]) for one in mine]
    frame["_order"] = [-is_better(row.metric_name) * row.metric for row in frame.itertuples()]
    kept = ["pattern", "target", "method", "metric_name", "seeds", "metric", "interval", "soft", "sparsity"]
    kept += ["macs_sparse", "step_ratio", "mask_ms", "extra_memory_mb", "extra_parameters"]
    return frame.sort_values(["pattern", "target", "_order"], ignore_index=True)[kept]


def _told_apart(runs: pd.DataFrame) -> pd.Series:
    """The methods' names, with the cell where a name stands for several configurations.

    Runs that begin with weights of their own for each seed have as many cells as seeds, and are one configuration.
    """
    names = runs.method.copy()
    settings = runs[_SETTING].map(str).agg(" ".join, axis=1)
    for _, group in runs.groupby(_KEYS):
        if settings[group.index].nunique() > 1 or group.seed.duplicated().any():
            names[group.index] = group.method + " (" + group.cell + ")"
    return names


def markdown(frame: pd.DataFrame) -> str:
    """The table as Markdown: fractions in percent, MACs in millions."""
    metric = frame.metric_name.iloc[0]
    lines = [
        f"| pattern | target | method | seeds | {metric} (hard) | soft | sparsity | sparse MACs | step / dense | "
        "cuts, ms | extra memory | extra parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in frame.itertuples():
        lines.append(
            f"| {row.pattern or 'none'} | {target(row.target)} | {row.method} | {row.seeds} | "
            f"{score(metric, row.metric, row.interval)} | {score(metric, row.soft)} | {percent(row.sparsity)} | "
            f"{row.macs_sparse / 1e6:.2f} M | {_known(row.step_ratio, '.2f')} | {_known(row.mask_ms, '.2f')} | "
            f"{_known(row.extra_memory_mb, '+.0f', ' MB')} | {row.extra_parameters:,} |"
        )
    return "\n".join(lines) + "\n"


def _known(value: float, digits: str, unit: str = "") -> str:
    """The number in words; an empty cell where it was not measured, or there is no dense run to compare with."""
    return "" if math.isnan(value) else f"{value:{digits}}{unit}"
