"""Statistics over seeds: means with intervals, paired tests, and the dense run that belongs to each run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pdp.config.schema import RecipeConfig

CONFIDENCE = 0.95
# Names and measurements after training, which do not change the dense training.
_NOT_THE_CELL = ("name", "soft_every", "recalibrate_bn")
_NO_DEFAULT = object()


def mean(values: Sequence[float]) -> float:
    """The mean in float64; NaN without values."""
    return math.fsum(values) / len(values) if len(values) else math.nan


def median(values: Sequence[float]) -> float:
    """The median; NaN without values."""
    return float(np.median(np.asarray(values, dtype=float))) if len(values) else math.nan


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half the width of Student's interval of the mean, t(n-1) s / sqrt(n); NaN for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    spread = float(np.std(np.asarray(values, dtype=float), ddof=1))
    return float(t.ppf(0.5 + confidence / 2, len(values) - 1)) * spread / math.sqrt(len(values))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two methods over their common seeds: the mean of first - second, half its interval, and two-sided p values."""

    pairs: int
    difference: float
    interval: float
    p_t: float  # paired t test; NaN for fewer than two pairs or if all differences are equal
    p_wilcoxon: float  # signed rank test without zeros, exact up to 14 pairs; NaN if no difference is left


def paired(first: pd.Series, second: pd.Series) -> Paired:
    """Compares two series of a metric, indexed by seed, over their common seeds."""
    from scipy import stats

    both = pd.concat([first, second], axis=1, join="inner").dropna().sort_index()
    differences = np.array(both.iloc[:, 0] - both.iloc[:, 1], dtype=float)
    # A subtraction of equal metrics may leave a difference in the last bit.
    differences[np.abs(differences) < 1e-12] = 0.0
    count = len(differences)
    p_t = p_wilcoxon = math.nan
    if count >= 2 and np.ptp(differences) > 1e-12:
        p_t = float(stats.ttest_1samp(differences, 0.0).pvalue)
    left = differences[differences != 0]
    if count >= 2 and len(left) == 1:
        p_wilcoxon = 1.0
    elif count >= 2 and len(left):
        # All combinations of signs; scipy's exact table supports no ties, which are frequent among accuracies.
        method: Any = stats.PermutationMethod(n_resamples=2**14) if len(left) <= 14 else "auto"
        p_wilcoxon = float(stats.wilcoxon(np.round(left, 12), method=method).pvalue)
    return Paired(count, mean(list(differences)), interval(list(differences)), p_t, p_wilcoxon)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values of one family; a NaN stands for no test and stays NaN."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((number for number, p in enumerate(p_values) if not math.isnan(p)), key=lambda one: p_values[one])
    largest = 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def summarise(frame: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """One row per group of `keys`: `seeds`, and for each value its `_mean`, `_std`, `_min`, `_max` and `_interval`."""
    rows = []
    for key, group in frame.groupby(list(keys), sort=True, dropna=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        for name in values:
            numbers = group[name].to_numpy(dtype=float)
            row[f"{name}_mean"] = mean(numbers)
            row[f"{name}_std"] = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan
            row[f"{name}_min"], row[f"{name}_max"] = float(numbers.min()), float(numbers.max())
            row[f"{name}_interval"] = interval(numbers)
        rows.append(row)
    kinds = ("mean", "std", "min", "max", "interval")
    return pd.DataFrame(rows, columns=[*keys, "seeds", *(f"{name}_{kind}" for name in values for kind in kinds)])


def cell_of(record: dict[str, Any]) -> str:
    """What a dense run must share with a run, except the seed, to be its baseline: model, start, data and recipe.

    Values of the recipe that equal the schema's defaults do not count, so that records older than an option still
    match.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(RecipeConfig)}
    recipe = {
        key: value
        for key, value in (record["recipe"] or {}).items()
        if key not in _NOT_THE_CELL and value != defaults.get(key, _NO_DEFAULT)
    }
    parts = [record[key] for key in ("model", "pretrained", "data", "data_fingerprint", "input_shape")]
    return json.dumps([*parts, recipe], sort_keys=True)


def with_dense(runs: pd.DataFrame, columns: Sequence[str], elsewhere: bool = True) -> pd.DataFrame:
    """`runs` with `dense_<column>`: the value of the `method=dense` run of the same cell and seed, NaN without one.

    A dense run of the same study is preferred; with `elsewhere` one of another study is accepted. A dense run trained
    with a teacher is no baseline. Needs the columns study, setting (`cell_of`), seed, method and distillation.
    """
    plain = [not teacher for teacher in runs.distillation]
    dense = runs[(runs.method == "dense") & np.array(plain, dtype=bool)].sort_values(["study", "cell"])
    joined = runs.copy()
    found: list[pd.DataFrame] = []
    for keys in (["study", "setting", "seed"], ["setting", "seed"])[: 1 + elsewhere]:
        first = dense.drop_duplicates(keys)[[*keys, *columns]]
        found.append(runs[keys].merge(first, on=keys, how="left").set_axis(runs.index))
    for column in columns:
        joined[f"dense_{column}"] = found[0][column].where(found[0][column].notna(), found[-1][column])
    return joined
