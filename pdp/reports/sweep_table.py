"""The table of a sweep, made from records: one row per run, and one row per cell over its seeds. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pdp.reports.runs import read_runs
from pdp.reports.sheet import target
from pdp.reports.statistics import summarise
from pdp.wording import of_unit

CELL = (
    "model",
    "pretrained",
    "data",
    "method",
    "pattern",
    "target_unit",
    "target_sparsity",
    "allocation",
    "epochs",
    "cell",
)
RESULTS = (
    *("metric_name", "metric", "metric_best", "metric_soft", "metric_before_pruning", "validation"),
    *("sparsity", "sparsity_all", "params", "params_nonzero", "macs", "macs_sparse", "macs_attention", "steps"),
)
TIMES = ("train_seconds", "step_ms_median", "mask_ms_median", "finished_at")  # columns that differ between any two runs
PER_CELL = ("metric", "metric_best", "sparsity", "macs_sparse", "train_seconds")


@dataclasses.dataclass(frozen=True)
class Tables:
    """`runs` has a row per record; `cells` has mean, spread, interval and number over seeds."""

    runs: pd.DataFrame
    cells: pd.DataFrame


def make_tables(runs: Iterable[Path]) -> Tables:
    """Both tables of these runs; runs without a record are left out; raises `Refusal` for a damaged record."""
    frame = read_runs(runs)[[*CELL, "seed", *RESULTS, "world_size", *TIMES]]
    return Tables(frame, summarise(frame, [*CELL, "metric_name"], PER_CELL))


def write_tables(tables: Tables, folder: Path) -> list[Path]:
    """Writes runs.csv and cells.csv with all digits, and table.md with rounded numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    texts = {
        "runs.csv": tables.runs.to_csv(index=False),
        "cells.csv": tables.cells.to_csv(index=False),
        "table.md": markdown(tables.cells),
    }
    for name, text in texts.items():
        beside = folder / f".{name}"
        beside.write_text(text, encoding="utf-8")
        written.append(beside.replace(folder / name))
    return written


def shown(cells: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and texts of the table per cell: fractions in percent, counts with thousands separators."""
    from pdp.wording import percent, score

    head = ["model", "start", "data", "method", "pattern", "asked", "seeds", "metric", "mean", "std", "least", "most"]
    head += ["zeros", "sparse MACs", "train s", "epochs", "allocation", "cell"]
    rows = []
    for row in cells.to_dict("records"):
        values = [score(row["metric_name"], row[f"metric_{kind}"]) for kind in ("mean", "std", "min", "max")]
        values = ["" if "nan" in value else value for value in values]
        rows.append(
            [
                row["model"],
                start_of(row["pretrained"]),
                *(row[key] for key in ("data", "method", "pattern")),
                asked(row),
                str(row["seeds"]),
                row["metric_name"],
                *values,
                percent(row["sparsity_mean"]),
                f"{row['macs_sparse_mean']:,.0f}",
                f"{row['train_seconds_mean']:.1f}",
                str(row["epochs"]),
                "" if row["method"].partition("+")[0] == "dense" else str(row["allocation"]),
                str(row["cell"]),
            ]
        )
    return head, rows


def start_of(pretrained: str) -> str:
    """Where a run's initial weights came from: "random", "hub", or the name of their file."""
    return {"false": "random", "true": "hub"}.get(str(pretrained).lower(), str(pretrained).partition(" (")[0])


def asked(row: dict[str, Any]) -> str:
    """The target, and what it is a share of if that is not the weights: "50 % of MACs"."""
    if row["method"].partition("+")[0] == "dense":
        return ""
    return target(row["target_sparsity"]) + of_unit(row["target_unit"])


def markdown(cells: pd.DataFrame) -> str:
    """The table per cell in Markdown."""
    head, rows = shown(cells)
    lines: list[Sequence[str]] = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(tables: Tables, folder: str) -> None:
    """Prints the cells on the terminal: a table for each model and data set, of the columns that fit its width.

    What all cells of a table share is said once, above it. In a pipe or a log it is one table with every column.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    head, rows = shown(tables.cells)
    console.print(f"{len(tables.runs)} runs of {folder}", soft_wrap=True)
    if not console.is_terminal:
        console.width = 1000
        whole = Table(*head)
        for row in rows:
            whole.add_row(*row)
        console.print(whole)
        return
    narrow: list[str] = []
    for (model, start, data, metric), group in pd.DataFrame(rows, columns=head).groupby(
        _TABLE, sort=False, dropna=False
    ):
        frame = group.drop(columns=_TABLE)
        same = {name: frame[name].iloc[0] for name in _SAME if frame[name].nunique() == 1}
        if frame["allocation"].str.strip().replace("", None).nunique() < 2:
            same["allocation"] = ""
        empty = [name for name in frame if not frame[name].str.strip().any()]
        frame = frame.drop(columns={*same, *empty})
        for name in _MAY_GO:
            if _width(frame) > console.width and name in frame:
                frame = frame.drop(columns=name)
                narrow += [] if name in narrow else [name]
        words = [f"{metric} of {model} on {data}" + ("" if start == "random" else f", from {start} weights")]
        said = {"pattern": same.get("pattern"), "asked": same.get("asked"), "epochs": f"{same.get('epochs')} epochs"}
        said["epochs"] = "1 epoch" if same.get("epochs") == "1" else said["epochs"]
        words += [str(said[name]) for name in same if name in said and same[name] not in ("", "none")]
        table = Table(title=", ".join(words), title_justify="left")
        for name in frame:
            justify: Any = "left" if name in _TEXTS else "right"
            table.add_column(name, justify=justify, no_wrap=_width(frame) <= console.width, overflow="fold")
        for values in frame.itertuples(index=False):
            table.add_row(*values)
        console.print(table)
    if narrow:
        console.print(f"a wider terminal shows also: {', '.join(reversed(narrow))}", soft_wrap=True)


_TABLE = ["model", "start", "data", "metric"]
# What goes first on a narrow terminal, and then on one that is narrower still.
_MAY_GO = ("most", "least", "train s", "epochs", "sparse MACs", "std", "zeros", "seeds", "allocation", "cell")
_SAME = ("pattern", "asked", "epochs")  # no column of its own where all cells agree, nor has the allocation
_TEXTS = ("method", "pattern", "asked", "allocation", "cell")  # aligned left, numbers right


def _width(frame: pd.DataFrame) -> int:
    """Columns of a terminal that the table takes, borders and padding included."""
    return 1 + sum(3 + max(len(str(name)), *frame[name].str.len()) for name in frame)
