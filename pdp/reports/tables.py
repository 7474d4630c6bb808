"""Makes every table for which there are records or published numbers, and writes it as Markdown, CSV and LaTeX."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pdp.patterns.options import kind_of
from pdp.reports.accuracy import accuracy_sheet
from pdp.reports.comparisons import paired_sheet, sparsities_sheet
from pdp.reports.cost import cost_sheet, hyperparameters_sheet
from pdp.reports.latency_sheet import latency_sheet
from pdp.reports.runs import read_kept
from pdp.reports.sheet import Sheet, as_csv, as_latex, as_markdown

PUBLISHED = "published.csv"
FORMATS = {"md": as_markdown, "csv": as_csv, "tex": as_latex}
_COLUMNS = (
    *("method", "label", "model", "data", "pattern", "sparsity", "macs", "macs_published", "mac_convention"),
    *("metric_name", "value", "epochs", "source", "verified"),
)
_VISION = "top1"


def make_sheets(results: Path) -> list[Sheet]:
    """The tables of `results`/records and `results`/published.csv; those with metrics are made for each data set."""
    runs, published = read_kept(results), read_published(results / PUBLISHED)
    sheets = []
    for kind, title, patterns in (
        ("random", "Random pruning", ("random",)),
        ("nm", "N:M pruning", None),
        ("channel", "Channel pruning", ("channel",)),
        ("block", "Block pruning", None),
        ("language", "Language", ()),
    ):
        chosen, known = (_of_kind(frame, kind, patterns) for frame in (runs, published))
        for data in sorted({*chosen.data, *known.data}):
            sheets.append(accuracy_sheet(f"{kind}_{data}", f"{title}, {data}", chosen, known, data))
    for data in sorted(set(runs.data)):
        sheets += [sheet for make in (sparsities_sheet, paired_sheet) if (sheet := make(runs, data))]
    if latency := latency_sheet(runs, results / "benchmarks"):
        sheets.append(latency)
    return sheets + ([cost_sheet(runs), hyperparameters_sheet(runs)] if len(runs) else [])


def read_published(path: Path) -> pd.DataFrame:
    """The published numbers; an empty frame if there is no such file."""
    if not path.is_file():
        return pd.DataFrame(columns=list(_COLUMNS))
    from pdp.runs.published import load_published

    return load_published(path)


def write_sheets(sheets: list[Sheet], folder: Path) -> list[Path]:
    """Writes every sheet in every format, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sheet in sheets:
        for ending, text in FORMATS.items():
            path = folder / f"{sheet.name}.{ending}"
            beside = folder / f".{path.name}"
            beside.write_text(text(sheet), encoding="utf-8")
            written.append(beside.replace(path))
    return written


def outlived(folder: Path, written: list[Path]) -> list[Path]:
    """The tables in `folder` that are not among those written, because their records are gone."""
    return sorted(path for ending in FORMATS for path in folder.glob(f"*.{ending}") if path not in written)


def _of_kind(frame: pd.DataFrame, kind: str, patterns: tuple[str, ...] | None) -> pd.DataFrame:
    """The rows of one kind of table, with the dense rows that belong to them."""
    vision = frame.metric_name == _VISION
    if kind == "language":
        return frame[~vision]
    pruned = frame[vision & (frame.pattern.map(kind_of) == kind if patterns is None else frame.pattern.isin(patterns))]
    # A dense run belongs to the tables of its study's patterns, a published one to those of its model.
    keys = [key for key in ("study", "model", "data") if key in frame]
    dense = frame[vision & (frame.pattern == "none")]
    wanted = set(map(tuple, pruned[keys].to_numpy()))
    beside = [index for index, key in zip(dense.index, dense[keys].to_numpy(), strict=True) if tuple(key) in wanted]
    return frame.loc[[*pruned.index, *beside]]
