"""The progress of each run of a sweep, from its files and the queue. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pdp.cluster import slurm
from pdp.cluster.job import last_words
from pdp.cluster.manifest import Ending, Run, SweepFolder
from pdp.cluster.submission import in_queue
from pdp.runs.store import read_run, seconds_left

STATES = ("done", "running", "queued", "saved", "failed", "lost", "missing")


@dataclass
class RunState:
    """A run as status.py shows it; `code` is the exit code of a failed one."""

    run: Run
    state: str  # one of STATES; saved: can be resumed, but has no job in the queue; lost: its job died silently
    job: str = ""
    epoch: int | None = None  # number of epochs done
    epochs: int | None = None
    left: float | None = None  # estimated seconds of training left, from the mean speed so far
    limit: str = ""  # time left until the job's time limit
    metric_name: str = ""
    metric: float | None = None
    code: int | None = None
    words: str = ""


def read_states(folder: SweepFolder, ask_slurm: bool = True) -> list[RunState]:
    """Every run that was submitted or is finished; without `ask_slurm` waiting runs count as missing or lost."""
    queued = in_queue(folder) if ask_slurm else {}
    submitted = {number for one in folder.submitted() for number in one.runs}
    runs = [run for run in folder.runs() if run.number in submitted or run.finished]
    return [read_state(folder, run, queued.get(run.number)) for run in runs]


def read_state(folder: SweepFolder, run: Run, queued: slurm.QueuedTask | None) -> RunState:
    """The state of one run; `queued` is its job if one is waiting or running."""
    ending = folder.ending(run.number)
    stored = read_run(run.path)
    found = RunState(run, "missing", ending.job if ending else "", stored.epoch, stored.epochs)
    found.metric_name, found.metric = stored.metric_name, stored.metric
    if stored.status == "finished":
        found.state = "done"
    elif queued:
        found.job = f"{queued.job}_{queued.task}"
        found.state = "running" if queued.state in ("RUNNING", "COMPLETING") else "queued"
        found.limit = queued.left if found.state == "running" else ""
        found.left = seconds_left(run.path, stored.epochs) if found.state == "running" else None
        found.words = "" if found.state == "running" else _why_not(queued)
    elif ending:
        found.state, found.code, found.words = _ended(ending)
    return found


def _why_not(queued: slurm.QueuedTask) -> str:
    """Why a job is not running: the reason for which it waits, or else its state."""
    reason = "" if queued.reason == "None" else queued.reason
    return reason if queued.state == "PENDING" else f"{queued.state.lower()} {reason}".strip()


def _ended(ending: Ending) -> tuple[str, int | None, str]:
    if ending.code is None:
        return "lost", None, last_words(Path(ending.log)) or "its job died without a word"
    if ending.code == 75:
        return "saved", 75, ending.words
    return "failed", ending.code, ending.words
