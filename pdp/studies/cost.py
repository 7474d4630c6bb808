"""The cost of a study in CPU hours before it is run: from records, else from a few steps that are timed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from pdp.config.arguments import parse
from pdp.config.compose import compose_tree
from pdp.errors import Refusal
from pdp.runs.record import Record
from pdp.studies.study import Cell, Study

Measure = Callable[[Cell], float]


def study_table(
    studies: Sequence[Study], kept: dict[str, list[Record]], measure: Measure | None = None
) -> pd.DataFrame:
    """One row per study: name, command, runs, kept, cpu_hours (of all its runs, one thread each) and seconds_from.

    A run is estimated by the median `train_seconds` of the study's own records, of its method if there are any, else of
    other records with the same model, data and epochs. If there are none, `measure` (such as `timed_here`) returns the
    seconds of a cell's run; without it the cost is NaN.
    """
    rows = []
    for study in studies:
        own = kept.get(study.name, []) + kept.get(f"{study.name}_tuning", [])
        others = [one for kept_runs in kept.values() for one in kept_runs] if not own else []
        cells = [cell for method in study.methods for cell in study.cells(method)]
        try:
            model, data, epochs = _what(cells[0])
        except Refusal as refusal:  # it begins with a run that is not here
            rows.append(_unknown(study, len(cells), len(own), str(refusal)))
            continue
        near = own or [one for one in others if (one.model, one.data, one.epochs) == (model, data, epochs)]
        cost = _cost_of(near) if near or measure is None else _measured(measure)
        hours = sum(cost(cell) for cell in cells) / 3600
        timed = "steps timed here, one thread, nothing measured" if not math.isnan(hours) else "no record"
        rows.append(
            {
                "study": study.name,
                "command": f"python scripts/compare.py conf/study/{study.name}.yaml",
                "runs": len(cells),
                "kept": len(own),
                "cpu_hours": hours,
                "seconds_from": "its own records" if own else f"records of {model} on {data}" if near else timed,
            }
        )
    return pd.DataFrame(rows)


def _unknown(study: Study, runs: int, kept: int, reason: str) -> dict[str, object]:
    """The row of a study whose cost cannot be estimated."""
    return {
        "study": study.name,
        "command": f"python scripts/compare.py conf/study/{study.name}.yaml",
        "runs": runs,
        "kept": kept,
        "cpu_hours": math.nan,
        "seconds_from": reason,
    }


def _what(cell: Cell) -> tuple[str, str, int]:
    tree, _, _ = compose_tree(parse(cell.overrides))
    task = getattr(tree.data, "task", None)
    return tree.model.name, f"{tree.data.name}-{task}" if task else tree.data.name, tree.recipe.epochs


def _cost_of(records: Sequence[Record]) -> Callable[[Cell], float]:
    seconds: dict[str, list[float]] = {}
    for record in records:
        seconds.setdefault(record.method, []).append(record.train_seconds)
    everything = [one for values in seconds.values() for one in values]

    def cost(cell: Cell) -> float:
        values = seconds.get(cell.method, everything)
        return float(pd.Series(values).median()) if values else math.nan

    return cost


def _measured(measure: Measure) -> Measure:
    """Measures one cell of each method, and uses the result for the method's other cells."""
    found: dict[str, float] = {}

    def cost(cell: Cell) -> float:
        if cell.method not in found:
            found[cell.method] = measure(cell)
        return found[cell.method]

    return cost


def timed_here(cell: Cell, steps: int = 4) -> float:
    """Seconds of all training steps of the cell's run, from a few at the target on random numbers, with one thread.

    Evaluations between epochs are not included. NaN if the study needs further arguments, such as the path of its
    model.
    """
    import torch

    from pdp.benchmarks.contender import Contender
    from pdp.config.compose import compose
    from pdp.training.assembly import steps_in_epoch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = compose([*cell.overrides, "device=cpu", "dry_run=true"])
        contender = Contender(config, made=True)
        contender.seconds(2)
        in_run = steps_in_epoch(config, contender.task) * config.recipe.epochs
        return contender.seconds(steps) / steps * in_run
    except Refusal:
        return math.nan
    finally:
        torch.set_num_threads(threads)
