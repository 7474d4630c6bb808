"""Runs the cells of a study, several at a time in separate processes; runs that are kept already count as done."""

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
from pdp.studies.search import Trials
from pdp.studies.study import Cell, Chosen, Setting, Study

Report = Callable[[str, Cell], None]


_fingerprints: dict[str, str] = {}  # by data, model and start, which determine what is read


def _placed(overrides: Sequence[str]) -> tuple[Config, Path]:
    """The run that the overrides mean, and its directory; opens the data, whose content is part of a run's identity."""
    from pdp.config.compose import compose
    from pdp.config.identity import run_directory
    from pdp.tasks import build_task

    config = compose(overrides)
    what = repr((config.model, config.data, config.start.run))
    if what not in _fingerprints:
        task = build_task(config)
        task.open_data()
        _fingerprints[what] = task.data_fingerprint
    return config, Path(run_directory(config, _fingerprints[what]))


def kept_at(cell: Cell, results: Path) -> Path:
    """Where the cell's record is or will be kept; opens the data, whose content is part of a run's identity."""
    _, run = _placed(cell.overrides)
    return results / "records" / cell.study / run.parent.name / run.name


def run_cell(
    cell: Cell, results: Path, output_dir: Path, keep_files: bool, fingerprints: dict[str, str] | None = None
) -> str:
    """Runs and keeps one cell; returns "done", "kept" (it was there already), or one line that says what failed.

    `fingerprints` are those of data that another process has opened.
    """
    from pdp.runs.keeping import keep
    from pdp.training.run import train

    _fingerprints.update(fingerprints or {})
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        config, run = _placed([*cell.overrides, f"output_dir={output_dir}"])
        if (results / "records" / cell.study / run.parent.name / run.name / RECORD).is_file():
            return "kept"
        log = output_dir / f".{run.parent.name}-{run.name}.log"
        with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            train(config)
        keep(run, cell.study, results, small=True)
    except (Refusal, Stopped, SavedForRestart) as error:
        return f"{type(error).__name__}: {error}"
    log.unlink()
    if not keep_files:
        shutil.rmtree(run)
    return "done"


def run_cells(cells: Sequence[Cell], results: Path, output_dir: Path, jobs: int, keep_files: bool, tell: Report) -> int:
    """Runs what is not kept yet; returns how many cells failed. A failure does not affect other cells."""
    # One thread per process, so that one run per core can be in progress.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pdp.training.run", "pdp.tasks.images", "timm", "torch._dynamo"])
    failed = 0
    left = []
    for cell in cells:
        try:
            if (kept_at(cell, results) / RECORD).is_file():
                tell("kept", cell)
                continue
        except (Refusal, Stopped):
            pass  # the run's own process has reported it
        left.append(cell)
    while left:
        # A separate process for each cell, so that its peak memory can be measured.
        with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
            pending = {
                pool.submit(run_cell, cell, results, output_dir, keep_files, _fingerprints): cell for cell in left
            }
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
    """The paths of the kept records of a study without tuning, each with the name of its row: method and setting."""
    return {
        folder: row
        for row, cells in study.rows({}).items()
        for cell in cells
        if ((folder := kept_at(cell, results)) / RECORD).is_file()
    }


def score_of(cell: Cell, results: Path) -> float | None:
    """The validation score of the cell's kept run at its last epoch (higher is better); None if it is not kept."""
    folder = kept_at(cell, results)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        last = json.loads((folder / "history.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    return last["metric"] if record["metric_name"] not in ("perplexity", "loss") else -last["metric"]


def trials_of(study: Study, results: Path) -> Trials:
    """The study's trials that were drawn."""
    return Trials(results / "studies" / f"{study.name}_trials.json")


def choose(study: Study, method: str, results: Path) -> Chosen:
    """The setting whose tuning run has the best validation score at its last epoch; among equals the earlier one.

    With a search, one setting per sparsity. Raises `Refusal` if a run is not kept yet.
    """
    if study.search is not None:
        return {
            sparsity: _best_trial(study, method, sparsity, results)
            for sparsity in study.sparsities_of(method)
            if study.wants(method, sparsity)
        }
    cells = study.tuning(method)
    if not cells:
        return study.methods[method][0]
    scores = [score_of(cell, results) for cell in cells]
    return cells[_best(cells, scores, "run the study first")].setting


def _best_trial(study: Study, method: str, sparsity: float | None, results: Path) -> Setting:
    settings = trials_of(study, results).settings(method, sparsity)
    first = f"run scripts/tune.py conf/study/{study.name}.yaml first"
    if study.search is None or len(settings) < study.search.trials:
        drawn = f"{len(settings)} of {study.search.trials if study.search else 0} trials of {method}"
        raise Refusal(f"{drawn}{'' if sparsity is None else f' at {sparsity:g}'} are drawn: {first}")
    cells = [study.trial(method, sparsity, one) for one in settings]
    return settings[_best(cells, [score_of(cell, results) for cell in cells], first)]


def _best(cells: Sequence[Cell], scores: Sequence[float | None], hint: str) -> int:
    for cell, score in zip(cells, scores, strict=True):
        if score is None:
            raise Refusal(f"{cell.label} is not run yet, so {cell.method} has no setting: {hint}")
    return scores.index(max(score for score in scores if score is not None))
