"""The paper's result tables: our cells beside published numbers, paired where both exist."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from pdp.reports.cells import cells
from pdp.reports.sheet import Section, Sheet, columns, count, heading, is_better, is_fraction, percent, score, target
from pdp.runs.published import near_target

_GROUP = ["data", "model", "metric_name"]
_PUBLISHED = ("label", "sparsity", "macs", "macs_published", "mac_convention", "value", "epochs", "source", "verified")
_THEIRS = 5  # number of columns for a published number
_MACS = "MACs are multiply-adds of convolution and linear layers."
_NOTES = (
    "Metrics are of the hard model (exact zeros) on the test set at the last epoch: the mean over seeds with its 95 % "
    "interval (Student t). Differences are in points; the one to dense is paired, each run against the dense run of "
    f"the same cell and seed. {_MACS}",
    "A published number stands beside a run of the same method, model, data and pattern whose target is at most half "
    "a point from its sparsity (five points for a share of MACs); recipes and epochs are each source's own.",
)


def accuracy_sheet(name: str, title: str, runs: pd.DataFrame, published: pd.DataFrame, data: str) -> Sheet:
    """The table of one data set; `runs` and `published` must already be restricted to its kind (see `tables`)."""
    sheet = Sheet(
        name,
        title,
        columns(
            ["method", "study"],
            [
                *("target", "seeds", "metric", "zeros", "sparse MACs", "dense, same seeds", "to dense", "epochs"),
                *("published", "at sparsity", "MACs", "epochs there", "ours - published"),
            ],
        ),
        notes=list(_NOTES),
    )
    here, known = runs[runs.data == data], published[published.data == data]
    # Records and sources may have several metrics, such as accuracy and F1, or the matched and the mismatched part.
    ours = [cells(_of_metric(here, one)) for one in sorted({*here.metric_name, *known.metric_name})]
    pairs = _pairs(pd.concat([one for one in ours if len(one)] or [cells(here)], ignore_index=True), known)
    sheet.frame = pairs
    for (_, model, metric), group in pairs.groupby(_GROUP, sort=True):
        section = Section(heading(f"{model} on {data}", f"{metric}"), [])
        section.rows = [_shown(sheet, row) for row in _ordered(group).to_dict("records")]
        sheet.sections.append(section)
    if pairs.published_value.isna().all():
        _keep_columns(sheet, slice(0, -_THEIRS))
        sheet.notes[1:] = ["No published number is of this data set."]
    elif not len(ours_of(pairs)):
        _keep_columns(sheet, slice(len(sheet.columns) - _THEIRS, -1))
        sheet.notes[:] = ["Published numbers alone: no record is of this data set and pattern yet. " + _MACS]
    return sheet


def ours_of(pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows that contain one of our cells."""
    return pairs[pairs.seeds > 0]


def _of_metric(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The runs that measured this metric, with it as their main metric."""
    values = [
        row.metric if row.metric_name == name else (row.metrics or {}).get(name, math.nan) for row in runs.itertuples()
    ]
    changed = runs.assign(metric=values, metric_name=name)
    other = runs.metric_name != name
    changed.loc[other, ["metric_soft", "metric_best"]] = math.nan
    return changed[changed.metric.notna()]


def _keep_columns(sheet: Sheet, kept: slice) -> None:
    """Keeps the first column, which names the row, and the columns `kept`."""
    places = sorted({0, *range(*kept.indices(len(sheet.columns)))})
    sheet.columns = [sheet.columns[place] for place in places]
    for section in sheet.sections:
        section.rows = [[row[place] for place in places] for row in section.rows]


def _pairs(ours: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Every pair, then ours and the published ones without a partner; the columns of a missing half are empty."""
    known = published[["method", "model", "data", "pattern", "metric_name", *_PUBLISHED]].reset_index(drop=True)
    rows: list[dict[str, Any]] = []
    paired: set[Any] = set()
    for one in ours.to_dict("records"):
        same = known[(known.model == one["model"]) & (known.method == one["published_method"])]
        same = same[(same.pattern == one["pattern"]) & (same.metric_name == one["metric_name"])]
        near = near_target(same, one["target_sparsity"], one["target_unit"] == "mac", one["macs"])
        paired |= set(near.index)
        for other in near.to_dict("records") or [{}]:
            difference = one["metric"] - other["value"] if other else math.nan
            rows.append(one | _theirs(other) | {"published_difference": difference})
    for other in known.drop(index=list(paired)).to_dict("records"):
        alone = {key: other[key] for key in ("method", "label", "model", "data", "pattern", "metric_name")}
        rows.append(alone | {"target_sparsity": other["sparsity"], "seeds": 0, **_theirs(other)})
    names = [*ours.columns, *(f"published_{one}" for one in _PUBLISHED), "published_difference"]
    frame = pd.DataFrame(rows, columns=names)
    order = [*_GROUP, "pattern", "target_sparsity", "method", "study", "cell", "published_value", "published_source"]
    return frame.sort_values(order, ignore_index=True)


def _theirs(other: dict[str, Any]) -> dict[str, Any]:
    return {f"published_{key}": other.get(key) for key in _PUBLISHED}


def _ordered(group: pd.DataFrame) -> pd.DataFrame:
    """Sorts by target, and then by metric, better ones first, whether ours or published."""
    best = group.metric.astype(float).fillna(group.published_value.astype(float))
    keyed = group.assign(_best=-is_better(group.metric_name.iloc[0]) * best)
    order = ["pattern", "target_sparsity", "_best", "method", "cell", "published_value", "published_source"]
    # The dense rows, which are the baselines, come first in their section.
    return keyed.assign(_pruned=keyed.pattern != "none").sort_values(["_pruned", *order])


def _shown(sheet: Sheet, row: dict[str, Any]) -> list[str]:
    metric, ours = row["metric_name"], row["seeds"] > 0
    known = {key: value for key, value in row.items() if isinstance(value, str) or not _empty(value)}
    marks = []
    if known.get("validation") == "test":
        marks.append(sheet.mark("The data's labelled set is the test here, and it served the run's choices too."))
    if known.get("changed") and "(" not in known["label"]:
        marks.append(sheet.mark(f"Options other than the method's own: {known['changed']}."))
    label = known["label"] if row["pattern"] in ("random", "none") else f"{known['label']}, {row['pattern']}"
    return [
        " ".join([label, *marks]),
        known.get("study", ""),
        _target(row) if ours and row["pattern"] != "none" else "",
        str(row["seeds"]) if ours else "",
        score(metric, row["metric"], row["interval"]) if ours else "",
        percent(row["sparsity"]) if ours else "",
        _macs(sheet, row) if ours else "",
        score(metric, known.get("dense_metric", math.nan)),
        score(metric, known.get("difference", math.nan), known.get("difference_interval", math.nan), sign=True),
        f"{row['epochs']:.0f}" if ours else "",
        *_published_shown(sheet, metric, known),
    ]


def _macs(sheet: Sheet, row: dict[str, Any]) -> str:
    shown = count(row["macs_sparse"])
    if not row["macs_attention"] > 0:
        return shown
    more = sheet.mark(f"Products of attention, which pruning leaves as they are: {count(row['macs_attention'])} more.")
    return f"{shown} {more}"


def _target(row: dict[str, Any]) -> str:
    return target(row["target_sparsity"]) + (" of MACs" if row["target_unit"] == "mac" else "")


def _published_shown(sheet: Sheet, metric: str, known: dict[str, Any]) -> list[str]:
    if "published_value" not in known:
        return [""] * _THEIRS
    macs = ""
    words = f"{known['published_source']}; verified: {known['published_verified']}"
    if "published_macs" in known:
        macs = count(known["published_macs"])
        if known.get("published_mac_convention", "mac") != "mac":
            original = count(known["published_macs_published"])
            words += f"; MACs converted from {original} in the convention {known['published_mac_convention']}"
    digits = 100 * known["published_value"] if is_fraction(metric) else known["published_value"]
    # As many digits as the source has, at most two.
    value = f"{round(digits, 2):g}{' %' if is_fraction(metric) else ''}"
    epochs = f"{known['published_epochs']:g}" if "published_epochs" in known else ""
    return [
        f"{value} {sheet.mark(words)}",
        percent(known["published_sparsity"]) if "published_sparsity" in known else "",
        macs,
        epochs,
        score(metric, known.get("published_difference", math.nan), sign=True),
    ]


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
