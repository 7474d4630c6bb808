"""Cells: the runs of one configuration over its seeds, with their dense runs and the labels that tell cells apart."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pdp.config.identity import EXCLUDED
from pdp.config.schema import RecipeConfig, ScheduleConfig
from pdp.methods.options import OPTIONS
from pdp.reports.runs import revised
from pdp.reports.statistics import interval, mean, paired, with_dense
from pdp.runs.published import published_method

KEY = ["study", "cell"]
_NAMED = ("method_options", "schedule", "allocation", "recipe", "pretrained", "distillation", "quantization")
# Values measured by quantization, which are results and not settings.
_FOUND = ("zeros", "weights", "activations", "floats", "never_seen")
_DEFAULTS = {
    name: {one.name: one.default for one in dataclasses.fields(kind) if one.default is not dataclasses.MISSING}
    for name, kind in (("recipe", RecipeConfig), ("schedule", ScheduleConfig))
}
_FOLLOWS = "schedule.start"  # follows from the warm-up, which is named


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per study and configuration, in raw values: metric with interval, zeros, MACs, and the dense runs.

    `difference` is the metric minus that of the dense run of the same cell and seed, with a paired interval; both are
    NaN if no seed has a dense run, and `dense_seeds` is the number of seeds that have one.
    """
    rows = [_cell(group) for _, group in with_dense(runs, ["metric"]).groupby(KEY, sort=True)]
    frame = pd.DataFrame(rows, columns=list(_cell_columns()))
    frame["label"] = labels(runs, frame)
    return frame


def _cell_columns() -> Sequence[str]:
    return (
        *("study", "model", "data", "pattern", "method", "label", "cell", "target_sparsity", "allocation", "epochs"),
        *("seeds", "metric_name", "metric", "interval", "least", "most", "soft", "best", "sparsity", "params_nonzero"),
        *("macs", "macs_sparse", "macs_attention", "dense_seeds", "dense_metric", "difference", "difference_interval"),
        *("validation", "target_unit", "published_method", "changed"),
    )


def _cell(group: pd.DataFrame) -> dict[str, Any]:
    first = group.iloc[0]
    beside = group[group.dense_metric.notna()].set_index("seed")
    is_dense = first.method == "dense"
    against = paired(beside.metric, beside.dense_metric) if len(beside) and not is_dense else None
    same = (
        *("study", "model", "data", "pattern", "method", "cell", "target_sparsity", "allocation", "epochs"),
        *("metric_name", "macs", "macs_attention", "validation", "target_unit"),
    )
    return {key: first[key] for key in same} | {
        "label": first.method,
        "published_method": published_method(first.method, (first.method_options or {}).get("variant")),
        "changed": changed_options(first.base_method, first.method_options or {}),
        "seeds": len(group),
        "metric": mean(group.metric.tolist()),
        "interval": interval(group.metric.tolist()),
        "least": group.metric.min(),
        "most": group.metric.max(),
        "soft": mean(group.metric_soft.astype(float).tolist()),
        "best": mean(group.metric_best.astype(float).tolist()),
        "sparsity": mean(group.sparsity.tolist()),
        "params_nonzero": mean(group.params_nonzero.tolist()),
        "macs_sparse": mean(group.macs_sparse.tolist()),
        "dense_seeds": 0 if is_dense else len(beside),
        "dense_metric": float("nan") if is_dense else mean(beside.dense_metric.tolist()),
        "difference": against.difference if against else float("nan"),
        "difference_interval": against.interval if against else float("nan"),
    }


def changed_options(method: str, options: dict[str, Any]) -> str:
    """The options of a run that differ from their method's defaults, such as temperature_mode=relative."""
    own = vars(OPTIONS[method]()) if method in OPTIONS else {}
    return ", ".join(f"{key}={value}" for key, value in sorted(options.items()) if key in own and value != own[key])


def labels(runs: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """The method's name, extended by what differs where a study has several configurations of it at one target.

    A value that more than half of them share is not mentioned: in a study that changes one thing at a time, the common
    reference has the bare name.
    """
    settings = {key: _flat(group.iloc[0]) for key, group in runs.groupby(KEY)}
    older = {key: _revision(group.iloc[0]) for key, group in runs.groupby(KEY)}
    together = frame.groupby(["study", "model", "data", "pattern", "method", "target_sparsity"], sort=False)
    found: dict[Any, str] = {}
    for _, group in together:
        keys = [tuple(one) for one in group[KEY].to_numpy()]
        mine = [settings[key] for key in keys]
        usual: dict[str, str | None] = {}
        for name in sorted({name for one in mine for name in one}):
            value, times = Counter(one.get(name) for one in mine).most_common(1)[0]
            usual[name] = value if 2 * times > len(mine) else None
        newest = [values for key, values in zip(keys, mine, strict=True) if not older[key]]
        if len(newest) == 1 and len(mine) > 1:  # runs of earlier revisions are told from those of the code's own
            usual = dict.fromkeys(usual) | newest[0]
        bare = 0
        for key, values in zip(keys, mine, strict=True):
            words = [f"{_short(name)}={value}" for name, value in values.items() if value != usual[name]]
            bare += not words
            # If nothing else tells two configurations apart, their hash is used.
            words = words or ([key[1]] if bare > 1 else [])
            method = group.method.iloc[0]
            words = sorted(words) + older[key]
            found[key] = f"{method} ({', '.join(words)})" if words else method
    return [found[tuple(one)] for one in frame[KEY].to_numpy()]


def _revision(row: pd.Series) -> list[str]:
    """The method's revision, if the code has a later one."""
    return [f"revision {row.method_revision}"] if revised(row) else []


def _short(name: str) -> str:
    """A setting without its group, except for the group's own name: schedule=cubic."""
    return name.removesuffix(".name").rpartition(".")[2]


def _flat(row: pd.Series) -> dict[str, str]:
    values: dict[str, str] = {}
    for name in _NAMED:
        inner = row[name] if isinstance(row[name], dict) else {name: row[name]}
        # An option that was added after the run was made had the default's effect.
        inner = _DEFAULTS.get(name, {}) | inner
        values |= {f"{name}.{key}": str(value) for key, value in inner.items() if value is not None}
    for key in _FOUND:
        values.pop(f"quantization.{key}", None)
    for key in (_FOLLOWS, *EXCLUDED):
        values.pop(key, None)
    return values
