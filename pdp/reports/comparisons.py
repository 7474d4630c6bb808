"""Tables of methods over sparsities, and of PDP against each method in pairs of runs with the same seed."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pdp.reports.cells import KEY, cells
from pdp.reports.sheet import Section, Sheet, columns, heading, p_value, score, target
from pdp.reports.statistics import holm, paired

_GROUP = ["study", "model", "data", "metric_name"]
OURS, ANNEALED = "pdp", "pdp_annealed"


def sparsities_sheet(runs: pd.DataFrame, data: str) -> Sheet | None:
    """One row per method, one column per target sparsity; None if no study has two targets."""
    frame = cells(runs[runs.data == data])
    pruned = frame[frame.pattern != "none"]
    several = [(key, one) for key, one in pruned.groupby([*_GROUP, "pattern"]) if one.target_sparsity.nunique() > 1]
    if not several:
        return None
    targets = sorted({share for _, one in several for share in one.target_sparsity})
    sheet = Sheet(
        f"sparsities_{data}",
        f"Methods over sparsities, {data}",
        columns(["method"], [target(one) for one in targets]),
        notes=["The hard test metric at the last epoch, mean over seeds ± 95 % interval (Student t); ordered by name."],
        frame=pd.concat([one for _, one in several])[
            [*_GROUP[:3], "pattern", "method", "label", "cell", "target_sparsity", "metric_name", "metric", "interval",
             "seeds"]
        ],
    )  # fmt: skip
    for (study, model, _, metric, pattern), group in several:
        dense = frame[(frame.study == study) & (frame.model == model) & (frame.method == "dense")]
        words = [f"dense {score(metric, row.metric, row.interval)}" for row in dense.itertuples()]
        section = Section(heading(f"{model} on {data}", str(pattern), f"study {study}", metric, *words), [])
        # A label may name what differs at one target only, so a method can have several rows.
        for label, mine in sorted(group.groupby("label"), key=lambda one: (one[1].method.iloc[0] != OURS, one[0])):
            texts = {row.target_sparsity: score(metric, row.metric, row.interval) for row in mine.itertuples()}
            section.rows.append([str(label), *(texts.get(one, "") for one in targets)])
        sheet.sections.append(section)
    return sheet


def paired_sheet(runs: pd.DataFrame, data: str) -> Sheet | None:
    """PDP minus each other method, and minus its other settings, over the common seeds; None if there are no pairs."""
    mine = runs[(runs.data == data) & (runs.method != "dense")]
    names = cells(mine).set_index(KEY).label.to_dict() if len(mine) else {}
    rows: list[dict[str, Any]] = []
    for key, family in mine.groupby([*_GROUP, "pattern"]):
        found: list[dict[str, Any]] = []
        for share, group in family.groupby("target_sparsity"):
            by_cell = {cell: one for cell, one in group.groupby(KEY, sort=True)}
            for first, ours in by_cell.items():
                for second, others in by_cell.items():
                    against_itself = others.method.iloc[0] == OURS and names[first] == OURS and first != second
                    mine_too = ours.method.iloc[0] == ANNEALED and others.method.iloc[0] not in (OURS, ANNEALED)
                    if mine_too or (ours.method.iloc[0] == OURS and (against_itself or others.method.iloc[0] != OURS)):
                        test = paired(ours.set_index("seed").metric, others.set_index("seed").metric)
                        if test.pairs:
                            values = {"target_sparsity": share, "pdp": names[first], "method": names[second]}
                            found.append(values | vars(test))
        for kind in ("t", "wilcoxon"):
            for row, adjusted in zip(found, holm([row[f"p_{kind}"] for row in found]), strict=True):
                row[f"p_{kind}_holm"] = adjusted
        rows += [dict(zip([*_GROUP, "pattern"], key, strict=True)) | {"family": len(found)} | row for row in found]
    if not rows:
        return None
    sheet = Sheet(
        f"paired_{data}",
        f"PDP against each method, {data}",
        columns(
            ["PDP against"],
            ["target", "pairs", "PDP - method", "p, t", "t, Holm", "p, Wilcoxon", "Wilcoxon, Holm"],
        ),
        notes=[
            "Differences in points of the hard test metric between runs with the same seed, mean ± 95 % interval "
            "(Student t of the differences). p values are two-sided: the paired t test, and Wilcoxon's signed rank "
            "test, exact, without pairs that are equal. Holm's adjustment holds over all comparisons of a section, "
            "since PDP is compared with many methods: without it one in twenty would look significant by chance. "
            "With n pairs Wilcoxon's p cannot be under 2 / 2^n: 0.0625 for five."
        ],
        frame=pd.DataFrame(rows),
    )
    for (study, model, _, metric, pattern), group in sheet.frame.groupby([*_GROUP, "pattern"], sort=True):
        title = heading(f"{model} on {data}", str(pattern), f"study {study}", metric, f"{len(group)} comparisons")
        ordered = group.sort_values(["target_sparsity", "method", "pdp"])
        sheet.sections.append(Section(title, [_shown(row, metric) for row in ordered.to_dict("records")]))
    return sheet


def _shown(row: dict[str, Any], metric: str) -> list[str]:
    name = row["method"] if row["pdp"] == OURS else f"{row['method']}, by {row['pdp']}"
    return [
        name,
        target(row["target_sparsity"]),
        str(row["pairs"]),
        score(metric, row["difference"], row["interval"], sign=True),
        *(p_value(row[key]) for key in ("p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm")),
    ]
