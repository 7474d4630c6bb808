"""Which runs of a study are not kept yet, in words for its table."""

from __future__ import annotations

import pandas as pd

from pdp.studies.study import Cell, Study

_SAME_SHARE = 1e-9


def missing_runs(study: Study, runs: pd.DataFrame) -> tuple[list[Cell], int]:
    """The runs of the study's table that have no record among `runs`, and how many the table has in all.

    `runs` has the columns method, target_sparsity and seed; where nothing is tuned, method is the row's name. In a
    tuned study any setting of a method counts, and so does any revision of it.
    """
    if study.tuned:
        rows = {name: [cell for cell in study.cells(name) if cell.study == study.name] for name in study.methods}
    else:
        rows = study.rows({})
    names = runs.method.str.split(" ").str[0] if study.tuned else runs.method
    cells = [(row, cell) for row, found in rows.items() for cell in found]
    absent = [
        cell
        for row, cell in cells
        if not (
            (names == row)
            & (runs.seed == cell.seed)
            & (True if cell.sparsity is None else (runs.target_sparsity - cell.sparsity).abs() < _SAME_SHARE)
        ).any()
    ]
    return absent, len(cells)


def missing_words(study: Study, runs: pd.DataFrame) -> str:
    """One line, "missing, 2 of 9 runs: gmp 0.9 (seeds 1, 2)", or an empty one if the study is whole."""
    absent, total = missing_runs(study, runs)
    seeds: dict[str, list[int]] = {}
    for cell in absent:
        sparsity = "" if cell.sparsity is None else f" {cell.sparsity:g}"
        setting = "" if study.tuned else "".join(f" {word}" for word in cell.setting)
        seeds.setdefault(f"{cell.method}{sparsity}{setting}", []).append(cell.seed)
    words = [f"{name} (seed{'s' if len(some) > 1 else ''} {', '.join(map(str, some))})" for name, some in seeds.items()]
    return f"missing, {len(absent)} of {total} runs: {'; '.join(words)}" if absent else ""
