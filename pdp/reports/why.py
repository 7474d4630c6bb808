"""The generated parts of docs/studies/fashion_why.md (why annealing helps), from the records of that study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pdp.reports.blocks import fill, table
from pdp.reports.cells import KEY, cells
from pdp.reports.runs import read_history, read_layers
from pdp.runs.directory import RunDirectory

STUDY, WHY = "fashion_why", "docs/studies/fashion_why.md"
_SOFT = slice(2, 18)  # of the twenty bins of a mask: those between 0.1 and 0.9


def why_page(root: Path, runs: pd.DataFrame) -> dict[Path, str]:
    """The page's text by its path; empty if the study or the page does not exist."""
    place = root / WHY
    mine = runs[(runs.study == STUDY) & (runs.method != "dense")]
    if mine.empty or not place.is_file():
        return {}
    names = cells(mine).set_index(KEY).label.to_dict()
    labelled = {names[one.study, one.cell]: Path(one.path) for one in mine.itertuples()}
    found = {label: labelled[label] for label in sorted(labelled)}
    blocks = {"gradients": _gradients(found), "masks": _masks(found), "budgets": _budgets(found)}
    return {place: fill(place.read_text(encoding="utf-8"), blocks, WHY)}


def _gradients(runs: dict[str, Path]) -> str:
    rows = []
    for label, path in runs.items():
        for line in read_history(path):
            soft, tau = line.get("metric_soft"), line.get("temperature")
            rows.append(
                (
                    label, str(line["epoch"]), _percent(line["sparsity"]),
                    "" if soft is None else _percent(soft), _percent(line["metric"]), _percent(line["alive"]),
                    "" if line.get("revived") is None else f"{10_000 * line['revived']:.1f}",
                    "" if tau is None else f"{tau:.2f}",
                )
            )  # fmt: skip
    columns = ("run", "epoch", "sparsity", "soft", "hard", "alive", "came back, of 10,000", "mean of log10 tau")
    return table(columns, rows)


def _masks(runs: dict[str, Path]) -> str:
    rows = []
    for label, path in runs.items():
        place = RunDirectory(path).distributions
        if not place.is_file():
            continue
        with np.load(place) as held:
            for moment in ("start", "middle", "end"):
                key = f"{moment}/masks"
                if key in held:
                    counts = held[key].sum(axis=0).astype(float)
                    low, soft = counts[: _SOFT.start].sum(), counts[_SOFT].sum()
                    total = counts.sum()
                    rows.append((label, moment, *(_percent(one / total) for one in (low, soft, total - low - soft))))
    return table(("run", "moment", "mask under 0.1", "between", "over 0.9"), rows)


def _budgets(runs: dict[str, Path]) -> str:
    """The density of every layer at the end, and in the epoch in which half of the target is reached."""
    columns: list[str] = ["layer"]
    held: dict[str, list[str]] = {}
    for label, path in runs.items():
        layers, history = read_layers(path), read_history(path)
        if layers is None or not history:
            continue
        final = history[-1]["sparsity"]
        half = next((line for line in history if line["sparsity"] >= final / 2), history[-1])
        columns += [f"{label}, epoch {half['epoch']}", "end"]
        for name in layers.name:
            shares = half.get("layer_shares") or {}
            ends = history[-1].get("layer_shares") or {}
            held.setdefault(name, []).extend(_percent(1 - one[name]) if name in one else "" for one in (shares, ends))
    return table(columns, [(name, *values) for name, values in held.items()])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
