"""A page that shows a folder of runs, finished and in progress; it needs no network and no torch."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pdp.errors import Refusal
from pdp.reports import page as pages
from pdp.reports import plots, sweep_table
from pdp.reports.runs import read_history, read_layers
from pdp.reports.sweep_table import Tables, make_tables, shown
from pdp.runs.store import StoredRun, current_runs, read_run, seconds_left
from pdp.wording import duration, score

CURVES = 12  # most runs in progress whose curves are drawn
SHARES = 8  # most figures of layers; those with the most cells are drawn
# Runs that agree in these are drawn together, so that a line joins only runs that differ in method and sparsity.
_GROUP = ["model", "pretrained", "data", "pattern"]


def write_page(folder: Path, target: Path, refresh: int | None = None) -> str:
    """Writes the page of the runs in `folder`; returns a description of it. Raises `Refusal` without such a folder."""
    if not folder.is_dir():
        raise Refusal(f"{folder} is no folder: give the one that holds the runs")
    runs = [read_run(path) for path in current_runs(folder)]
    text = page(str(folder), runs, refresh)
    pages.write(text, target)
    counts = pd.Series([run.state for run in runs]).value_counts().to_dict()
    return ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "no runs"


def page(title: str, runs: Sequence[StoredRun], refresh: int | None) -> str:
    """The page's HTML; a browser reloads it every `refresh` seconds."""
    tables = make_tables(run.path for run in runs if run.status == "finished")
    parts = [_unfinished([run for run in runs if run.status in ("running", "unfinished")])]
    if len(tables.runs):
        for name, view in (
            ("Accuracy against sparsity", _against("sparsity", "sparsity reached, %")),
            ("Accuracy against MACs", _against("macs_sparse", "sparse MACs, millions of multiply-adds")),
        ):
            parts.append(f"<h2>{name}</h2>" + "".join(view(tables)))
        parts.append("<h2>Per-layer shares</h2>" + "".join(_shares(tables, runs)))
        parts.append("<h2>Training cost</h2>" + "".join(_cost(tables)))
        parts.append("<h2>Finished runs by cell</h2>" + pages.table(*shown(tables.cells), sortable=True))
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    note = "Metrics are of the hard model, at the last epoch; those of runs in progress are validation metrics."
    body = f"<h1>{html.escape(title)}</h1><p class=quiet>{when}. {note}</p>" + "".join(parts)
    return pages.document(title, body, refresh)


def _unfinished(runs: Sequence[StoredRun]) -> str:
    if not runs:
        return "<h2>Runs that are not finished</h2><p class=quiet>none</p>"
    rows = []
    for run in sorted(runs, key=lambda run: (run.status != "running", run.id)):
        done, epochs = run.epoch or 0, run.epochs or 0
        metric = "" if run.metric is None else score(run.metric_name, run.metric)
        left = seconds_left(run.path, run.epochs) if run.status == "running" else None
        bar = f"<progress max={epochs or 1} value={done}></progress> {done}/{epochs or '?'}"
        words = [run.id, run.model, run.data, run.method, run.pattern, run.asked, run.state]
        cells = [html.escape(str(word or "?" if word != "" else "")) for word in words]
        rows.append(
            [*cells, bar, html.escape(f"{run.metric_name} {metric}".strip()), "" if left is None else duration(left)]
        )
    head = ["id", "model", "data", "method", "pattern", "sparsity", "state", "epoch", "metric", "left"]
    live = [run for run in runs if run.epoch][:CURVES]
    histories = {f"{run.id} {run.method}": read_history(run.path) for run in live}
    drawn = [("metric", "hard validation metric"), ("sparsity", "sparsity")] if histories else []
    figures = "".join(plots.curves(histories, key, name) for key, name in drawn)
    table = pages.table(head, rows, escape=False, sortable=True)
    return f"<h2>Runs that are not finished</h2>{table}<div class=row>{figures}</div>"


def _against(x: str, x_title: str) -> Any:
    def view(tables: Tables) -> list[str]:
        return [
            plots.scatter(frame, x, x_title, title)
            for title, frame in _together(tables.runs)
            if (frame.method != "dense").any()
        ]

    return view


def _shares(tables: Tables, runs: Sequence[StoredRun]) -> list[str]:
    """One figure per model, data set, pattern and target; each cell is represented by its first seed."""
    paths = {(run.path.parent.name.rpartition("-")[2], run.path.name): run.path for run in runs}
    figures = []
    pruned = tables.runs[tables.runs.method != "dense"]
    groups = [*pruned.groupby([*_GROUP, "target_sparsity"], dropna=False)]
    for key, frame in sorted(groups, key=lambda group: -group[1].cell.nunique())[:SHARES]:
        layers: dict[str, pd.DataFrame] = {}
        for row in frame.drop_duplicates("cell").itertuples():
            path = paths.get((row.cell, f"seed{row.seed}"))
            table = None if path is None else read_layers(path)
            if table is None:
                continue
            label = row.method if row.method not in layers else f"{row.method} {row.cell}"
            layers[label] = table
        if layers:
            unit = sweep_table.asked(frame.iloc[0].to_dict())
            figures.append(plots.shares(layers, f"{_title(*key[:4])}, target {unit}"))
    if len(groups) > SHARES:
        figures.append(f"<p class=quiet>{len(groups) - SHARES} more targets are not drawn.</p>")
    return figures


def _title(model: str, pretrained: str, data: str, pattern: str) -> str:
    start = sweep_table.start_of(pretrained)
    return f"{model} on {data}, {pattern}" + ("" if start == "random" else f", from {start} weights")


def _together(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The runs that are drawn in one figure, by title: those of one pattern, and the dense ones with the same start."""
    found = []
    dense = runs[runs.method == "dense"]
    for key, group in runs[runs.method != "dense"].groupby([*_GROUP, "metric_name"], dropna=False):
        same = (dense[["model", "pretrained", "data", "metric_name"]] == [*key[:3], key[4]]).all(axis=1)
        found.append((_title(*key[:4]), pd.concat([group, dense[same]])))
    drawn = {index for _, frame in found for index in frame.index}
    for key, group in dense[~dense.index.isin(drawn)].groupby(_GROUP, dropna=False):
        found.append((_title(*key), group))
    return found


def _cost(tables: Tables) -> list[str]:
    figures = []
    for where, frame in _together(tables.runs):
        means = frame.groupby("method")[["train_seconds", "step_ms_median", "mask_ms_median"]].mean()
        drawn = [
            plots.bars(means.train_seconds, f"{where}: training", "seconds, mean of runs"),
            plots.bars(means.step_ms_median, f"{where}: a step", "milliseconds, median"),
        ]
        figures.append(f"<div class=row>{''.join(drawn)}</div>")
    return figures
