"""Submits the missing runs of a sweep, in arrays of the size that the cluster allows, and the job that makes tables."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pdp.cluster import slurm
from pdp.cluster.batch import Resources, gather_script, run_script
from pdp.cluster.manifest import Run, Submission, SweepFolder
from pdp.errors import Stopped


@dataclass
class Submitted:
    """The result of one call."""

    finished: list[int] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)  # waiting or running since an earlier call
    arrays: list[Submission] = field(default_factory=list)
    gather: Submission | None = None
    failure: str = ""  # why Slurm accepted no more

    @property
    def missing(self) -> list[int]:
        """The runs that this call submitted."""
        return [run for array in self.arrays for run in array.runs]


def in_queue(folder: SweepFolder) -> dict[int, slurm.QueuedTask]:
    """The runs whose job is waiting or running, by number."""
    arrays = {one.job: one for one in folder.submitted() if one.chunk}
    found = {}
    for (job, task), queued in slurm.queue(list(arrays)).items():
        if task < len(arrays[job].runs):
            found[arrays[job].runs[task]] = queued
    return found


def submit_missing(folder: SweepFolder, runs: Sequence[Run], resources: Resources, name: str, wandb: bool) -> Submitted:
    """Submits the runs that are neither finished nor in the queue; raises `Refusal`, or `Stopped` if Slurm fails.

    If Slurm accepts some arrays and then no more, the accepted ones stay, and `failure` says so.
    """
    done = Submitted()
    with folder.held():
        queued = in_queue(folder)
        done.finished = [run.number for run in runs if run.finished]
        done.queued = [number for number in queued if number not in done.finished]
        there = {*done.finished, *done.queued}
        missing = [run.number for run in runs if run.number not in there]
        if not missing:
            return done
        script = folder.path / "run.sh"
        script.write_text(run_script(folder, resources, name), encoding="utf-8")
        size = slurm.largest_array()
        limit = f"%{resources.at_once}" if resources.at_once else ""
        for first in range(0, len(missing), size):
            numbers = missing[first : first + size]
            chunk = folder.new_chunk(numbers)
            try:
                job = slurm.submit(script, str(chunk.resolve()), array=f"0-{len(numbers) - 1}{limit}")
            except Stopped as error:
                chunk.unlink()
                if not done.arrays:
                    raise
                done.failure = str(error)
                break
            array = Submission(job, chunk.name, numbers, f"{folder.logs}/{job}_%a.log")
            folder.note_submission(array)
            done.arrays.append(array)
        _submit_gather(folder, done, resources, name, wandb, sorted({task.job for task in queued.values()}))
    return done


def _submit_gather(
    folder: SweepFolder, done: Submitted, resources: Resources, name: str, wandb: bool, earlier: list[str]
) -> None:
    """Submits one job that waits for all arrays in the queue, and cancels such a job of an earlier call."""
    waiting = slurm.queue([one.job for one in folder.submitted() if not one.chunk])
    for job, _ in waiting:
        with suppress(Stopped):  # it has ended in the meantime
            slurm.cancel(job)
    script = folder.path / "gather.sh"
    script.write_text(gather_script(folder, resources, name, wandb), encoding="utf-8")
    try:
        job = slurm.submit(script, after=[*earlier, *(array.job for array in done.arrays)])
    except Stopped as error:
        done.failure = f"{done.failure}; no gather job: {error}".removeprefix("; ")
        return
    done.gather = Submission(job, log=f"{folder.logs}/gather-{job}.log")
    folder.note_submission(done.gather)
