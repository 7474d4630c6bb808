"""The cost of training relative to the dense run of the same cell and seed, and each method's hyper-parameters."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from pdp.reports.sheet import Section, Sheet, columns, heading, target
from pdp.reports.statistics import median, with_dense

_GROUP = ["study", "model", "data", "pattern"]
_BESIDE = ["step_ms_median", "train_seconds", "peak_memory_mb"]


def ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with step_ratio, time_ratio and memory_difference (MB) to the dense run of the same cell and seed."""
    joined = with_dense(runs, _BESIDE, elsewhere=False)  # times of another study may be of another machine or load
    joined["step_ratio"] = joined.step_ms_median.astype(float) / joined.dense_step_ms_median.astype(float)
    joined["time_ratio"] = joined.train_seconds.astype(float) / joined.dense_train_seconds.astype(float)
    joined["memory_difference"] = joined.peak_memory_mb.astype(float) - joined.dense_peak_memory_mb.astype(float)
    return joined


def cost_sheet(runs: pd.DataFrame) -> Sheet:
    """One row per study, model, data set, pattern and method, over targets and seeds; the dense run counts as 1."""
    rows: list[dict[str, Any]] = []
    joined = ratios(runs)
    for key, group in joined[joined.method != "dense"].groupby([*_GROUP, "method"]):
        rows.append(
            dict(zip([*_GROUP, "method"], key, strict=True))
            | {
                "runs": len(group),
                "with_dense": int(group.step_ratio.notna().sum()),
                "step_ratio": median(group.step_ratio.dropna()),
                "step_ratio_least": group.step_ratio.min(),
                "step_ratio_most": group.step_ratio.max(),
                "time_ratio": median(group.time_ratio.dropna()),
                "mask_ms": median(group.mask_ms_median),
                "memory_difference_mb": median(group.memory_difference.dropna()),
                "extra_parameters": int(group.extra_parameters.max()),
                "extra_parameters_share": float((group.extra_parameters / group.params).max()),
                "epochs": " ".join(str(one) for one in sorted(set(group.epochs))),
                "device": "; ".join(sorted(set(group.device))),
            }
        )
    sheet = Sheet(
        "training_cost",
        "Training cost",
        columns(
            ["method"],
            ["runs", "step / dense", "least, most", "training / dense", "cuts, ms", "memory", "extra parameters"]
            + ["of the model's", "epochs"],
        ),
        notes=[
            "Medians over targets and seeds of each run against its study's dense run of the same cell and seed: the "
            "median time of a training step, the whole training, and peak memory. Cuts are the pruner's calls between "
            "two steps; masks inside forward and backward are in the step. Times are of the runs themselves: where "
            "several ran side by side, as in a study on one machine, they say little beyond the order of magnitude, "
            "which least and most show.",
        ],
        frame=pd.DataFrame(rows),
    )
    if rows:
        for (study, model, data, pattern), group in sheet.frame.groupby(_GROUP, sort=True):
            title = heading(f"{model} on {data}", str(pattern), f"study {study}", group.device.iloc[0])
            section = Section(title, [_shown(row) for row in _pdp_first(group).to_dict("records")])
            sheet.sections.append(section)
    return sheet


def _shown(row: dict[str, Any]) -> list[str]:
    beside = row["with_dense"] > 0
    return [
        row["method"],
        str(row["runs"]),
        f"{row['step_ratio']:.2f}" if beside else "",
        f"{row['step_ratio_least']:.2f}, {row['step_ratio_most']:.2f}" if beside else "",
        f"{row['time_ratio']:.2f}" if beside else "",
        "" if math.isnan(row["mask_ms"]) else f"{row['mask_ms']:.2f}",
        f"{row['memory_difference_mb']:+.0f} MB" if beside else "",
        f"{row['extra_parameters']:,}",
        f"{100 * row['extra_parameters_share']:.2f} %" if row["extra_parameters"] else "none",
        row["epochs"],
    ]


def hyperparameters_sheet(runs: pd.DataFrame) -> Sheet:
    """One row per study, model, data set, pattern and method: its hyper-parameters, differing values joined by |."""
    rows: list[dict[str, Any]] = []
    for key, group in runs.groupby([*_GROUP, "method"]):
        recipe, schedule, options = (list(group[name]) for name in ("recipe", "schedule", "method_options"))
        weight = [f"{one.get('optimizer')} {_number(one.get('lr'))}, {one.get('lr_schedule')}" for one in recipe]
        rows.append(
            dict(zip([*_GROUP, "method"], key, strict=True))
            | {
                "optimizer": _distinct(weight),
                "weight_decay": _distinct([_number(one.get("weight_decay")) for one in recipe]),
                "batch_size": _distinct([one.get("batch_size") for one in recipe]),
                "epochs": _distinct(list(group.epochs)),
                "targets": _distinct([target(one) for one in sorted(group.target_sparsity)]),
                "schedule": _distinct([_schedule(one) for one in schedule]),
                "allocation": _distinct(list(group.allocation)),
                "options": _distinct([_options(one) for one in options]),
                "distillation": _distinct([_options(one) for one in group.distillation]),
                "extra_parameters": _distinct([int(one) for one in sorted(group.extra_parameters)]),
            }
        )
    names = ["method", "optimizer", "weight_decay", "batch_size", "epochs", "schedule", "allocation", "options"]
    names += ["distillation", "extra_parameters"]
    heads = [name.replace("_", " ") for name in names]
    sheet = Sheet(
        "hyperparameters",
        "Hyper-parameters by method",
        columns(heads, []),
        notes=["As the runs had them; values that differ between targets are joined by a bar."],
        frame=pd.DataFrame(rows),
    )
    if rows:
        for (study, model, data, pattern), group in sheet.frame.groupby(_GROUP, sort=True):
            title = heading(f"{model} on {data}", "" if pattern == "none" else str(pattern), f"study {study}")
            ordered = _pdp_first(group).to_dict("records")
            sheet.sections.append(Section(title, [[str(row[name]) for name in names] for row in ordered]))
    return sheet


def _pdp_first(group: pd.DataFrame) -> pd.DataFrame:
    return group.assign(_other=group.method != "pdp").sort_values(["_other", "method"])


def _schedule(values: dict[str, Any]) -> str:
    if not values:
        return "none"
    return " ".join([str(values.get("name")), *(f"{key}={values[key]}" for key in ("warmup", "ramp", "rate", "unit")
                                                if values.get(key) is not None)])  # fmt: skip


def _options(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_number(value)}" for key, value in values.items() if value is not None) or "none"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(values: list[Any]) -> str:
    return " | ".join(dict.fromkeys(str(value) for value in values))
