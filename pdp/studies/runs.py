"""Runs the cells of a study, several at a time, each in a process of its own; what is kept already counts as done."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pdp.config.schema import Config
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.runs.record import RECORD
from pdp.studies.study import Cell, Setting, Study

Report = Callable[[str, Cell], None]


def _placed(overrides: Sequence[str]) -> tuple[Config, Path]:
    """The run that the overrides name and its directory; opens the data, whose content is part of its identity."""
    from pdp.config.compose import compose
    from pdp.config.identity import run_directory
    from pdp.tasks import build_task

    config = compose(overrides)
    task = build_task(config)
    task.open_data()
    return config, Path(run_directory(config, task.data_fingerprint))


def kept_at(cell: Cell, results: Path) -> Path:
    """Where the cell's record is, or will be, kept; opens the data, whose content is part of a run's identity."""
    _, run = _placed(cell.overrides)
    return results / "records" / cell.study / run.parent.name / run.name


def run_cell(cell: Cell, results: Path, output_dir: Path, keep_files: bool) -> str:
    """Runs and keeps one cell; returns done, kept (there already), or one line of what stood in the way."""
    from pdp.runs import store as run_store
    from pdp.training.run import train

    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        config, run = _placed([*cell.overrides, f"output_dir={output_dir}"])
        if (results / "records" / cell.study / run.parent.name / run.name / RECORD).is_file():
            return "kept"
        log = output_dir / f".{run.parent.name}-{run.name}.log"
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            train(config)
        run_store.keep(run, cell.study, results, small=True)
    except (Refusal, Stopped, SavedForRestart) as error:
        return f"{type(error).__name__}: {error}"
    log.unlink()
    if not keep_files:
        shutil.rmtree(run)
    return "done"


def run_cells(cells: Sequence[Cell], results: Path, output_dir: Path, jobs: int, keep_files: bool, tell: Report) -> int:
    """Runs what is not kept yet; returns how many cells failed. One that fails leaves the others alone."""
    # Every process has one thread, so that as many run side by side as there are cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pdp.training.run", "pdp.tasks.images", "sklearn.datasets"])
    failed = 0
    left = list(cells)
    while left:
        # A process for each cell: its peak of memory is its own.
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
            pending = {pool.submit(run_cell, cell, results, output_dir, keep_files): cell for cell in left}
            left = []
            for future in as_completed(pending):
                cell = pending[future]
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    outcome = "its process, or one beside it, was killed: the same command goes on"
                except Exception as error:
                    outcome = f"{type(error).__name__}: {error}"
                failed += outcome not in ("done", "kept")
                tell(outcome, cell)
    return failed


def kept_rows(study: Study, results: Path) -> dict[Path, str]:
    """Where the kept records of a study without tuning lie, each with the name of its row, method and setting."""
    return {
        folder: row
        for row, cells in study.rows({}).items()
        for cell in cells
        if ((folder := kept_at(cell, results)) / RECORD).is_file()
    }


def choose(study: Study, method: str, results: Path) -> Setting:
    """The setting whose tuning run was best on the validation part at its last epoch; the earlier one among equals."""
    cells = study.tuning(method)
    if not cells:
        return study.methods[method][0]
    scores = []
    for cell in cells:
        folder = kept_at(cell, results)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            last = json.loads((folder / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, ValueError, IndexError):
            raise Refusal(f"{cell.label} is not run yet, so {method} has no setting: run the study first") from None
        higher = record["metric_name"] not in ("perplexity", "loss")
        scores.append(last["metric"] if higher else -last["metric"])
    return cells[scores.index(max(scores))].setting
