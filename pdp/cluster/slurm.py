"""The Slurm commands that the project uses, and how their output is read. Needs no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdp.errors import Refusal, Stopped

_FORMAT = "%F|%K|%T|%r|%L|%N"  # array job, array task, state, reason, time left, nodes


@dataclass(frozen=True)
class QueuedTask:
    """A job in the queue; `task` is -1 if it does not belong to an array."""

    job: str
    task: int
    state: str
    reason: str
    left: str
    nodes: str


def environment() -> dict[str, str]:
    """The environment without the variables of the job in which this process may itself run."""
    return {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}


def ask(*command: str) -> str:
    """The output of a Slurm command; raises `Refusal` if Slurm is not installed, `Stopped` if the command fails."""
    if not shutil.which(command[0]):
        raise Refusal(f"{command[0]} is not here: run this where Slurm's commands are, on a login node")
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit {done.returncode}"
        raise Stopped(f"{command[0]}: {reason}")
    return done.stdout


def largest_array() -> int:
    """The largest number of tasks that an array may have on this cluster."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    # Depending on the version, MaxArraySize is the first index that is too large or the last valid one; assume the
    # former.
    return max(1, int(found[1]) - 1 if found else 1000)


def submit(script: Path, *arguments: str, array: str = "", after: Sequence[str] = ()) -> str:
    """The id of a new job; it starts after the jobs `after` have ended, successfully or not."""
    command = ["sbatch", "--parsable"]
    if array:
        command.append(f"--array={array}")
    if after:
        command.append(f"--dependency=afterany:{':'.join(after)}")
    try:
        return ask(*command, str(script), *arguments).strip().split(";")[0]
    except Stopped as error:
        if "gres" in str(error):
            raise Stopped(f"{error}: give --gpus 0 on a cluster whose nodes have no GPUs") from None
        raise


def queue(jobs: Sequence[str]) -> dict[tuple[str, int], QueuedTask]:
    """Those of the jobs that are waiting, running or ending, by array job and task."""
    if not jobs:
        return {}
    found = {}
    for line in ask("squeue", "--noheader", "--array", "--me", f"--format={_FORMAT}").splitlines():
        job, task, *rest = line.strip().split("|")
        if job in jobs:
            number = int(task) if task.isdigit() else -1
            found[job, number] = QueuedTask(job, number, *rest)
    return found


def state(job: str) -> str:
    """The state of a job, such as RUNNING or CANCELLED; '' if Slurm no longer knows it."""
    try:
        found = re.search(r"\bJobState=(\w+)", ask("scontrol", "--oneliner", "show", "job", job))
    except Stopped:
        return ""
    return found[1] if found else ""


def requeue(job: str) -> None:
    """Puts a running job back into the queue, which also kills its processes; raises `Stopped`."""
    ask("scontrol", "requeue", job)


def cancel(job: str) -> None:
    """Removes a job from the queue; raises `Stopped`."""
    ask("scancel", job)
