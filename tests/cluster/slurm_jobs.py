"""Helpers for tests with a real Slurm: submit, wait for events, release, kill."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import small_slurm

from pdp.cluster.manifest import SweepFolder
from scripts.slurm import submit

STOPPED = threading.Event()  # set when the tests end before their acts have
LONGEST = 600  # seconds that anything may take on a busy machine


class Queued(NamedTuple):
    """A job as squeue shows it."""

    state: str
    reason: str


def submit_sweep(words, *options):
    """Calls submit.py and returns the sweep's folder."""
    (place,) = [Path(word.partition("=")[2]) for word in words if word.startswith("output_dir=")]
    assert submit.main([*words, "--cpus", "1", "--time", "10", *options]) == 0
    manifest = max((place / ".sweeps").glob("*/manifest.jsonl"), key=lambda path: path.stat().st_mtime)
    return SweepFolder(manifest.parent)


def wait_until(reached, what, longest=LONGEST, every=0.05):
    """Waits for a moment; what was waited for is in the failure, and what Slurm said in the meantime."""
    end = time.monotonic() + longest
    while not (value := reached()):
        if time.monotonic() > end or STOPPED.is_set():
            folder = Path(os.environ["SLURM_CONF"]).parent
            raise AssertionError(f"waited for {what}, {longest} s at most\n{jobs()}\n{small_slurm.logs(folder)}")
        time.sleep(every)
    return value


def jobs():
    """The states of all that waits or runs, by job and task: 12_3. A controller too busy to answer is asked again."""
    for _ in range(5):
        done = subprocess.run(["squeue", "-h", "-r", "-o", "%i|%T|%r"], capture_output=True, text=True)
        if not done.returncode:
            lines = [line.split("|") for line in done.stdout.splitlines()]
            return {name: Queued(*rest) for name, *rest in lines}
        time.sleep(1)
    raise AssertionError(f"squeue: {done.stderr}")


class Releaser(threading.Thread):
    """Slurm lets a requeued job wait for two minutes; here it may start after two seconds.

    Not at once: a node counts in whole seconds, and refuses a start in the second in which it ended the former one.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.ended = threading.Event()

    def run(self):
        since = {}
        while not self.ended.wait(0.5):
            try:
                waiting = {name: job.reason for name, job in jobs().items() if job.state == "PENDING"}
            except AssertionError:
                continue  # a controller that is busy for long; without us every requeued job would wait two minutes
            since = {name: since.get(name, time.monotonic()) for name in waiting if waiting[name] == "BeginTime"}
            for name, first in since.items():
                if time.monotonic() - first > 2:
                    subprocess.run(["scontrol", "update", f"JobId={name}", "StartTime=now"], capture_output=True)
            for name, reason in waiting.items():
                if "held" in reason.lower():  # a launch that failed, on a busy machine
                    subprocess.run(["scontrol", "release", name], capture_output=True)


def job_of(folder, number):
    """The newest job of a run, as squeue writes it."""
    for one in reversed(folder.submitted()):
        if number in one.runs:
            return f"{one.job}_{one.runs.index(number)}"
    raise AssertionError(f"run {number} was not submitted")


def processes_of(folder, number, module="pdp.cluster.rank"):
    """The processes of a run that Slurm started: its ranks, or with `module` pdp.cluster.job the one above them."""
    name, found = job_of(folder, number), []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "-m" not in command[:3] or command[command.index("-m") + 1] != module:  # torchrun's own -m is another
            continue
        try:
            environment = process.environ()
        except psutil.Error:  # it has ended
            continue
        job = f"{environment.get('SLURM_ARRAY_JOB_ID')}_{environment.get('SLURM_ARRAY_TASK_ID')}"
        if job == name and environment.get("SLURM_CONF") == os.environ["SLURM_CONF"]:
            found.append((int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0), process))
    return [process for _, process in sorted(found, key=lambda one: one[0])]


def kill(processes):
    """Kills processes; whether all of them were there to be killed."""
    try:
        for process in processes:
            process.kill()
    except psutil.NoSuchProcess:
        return False
    return bool(processes)


def history(run):
    """The lines of a run's history."""
    path = Path(run.directory) / "history.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def trains(folder, number, data="digits"):
    """Whether a run takes steps now: its newest start has said so in the log."""
    text = log_of(folder, number).rpartition("job: run ")[2]
    return f"on {data}." in text


def log_of(folder, number):
    """What a run's newest job printed, over all its starts."""
    path = folder.logs / f"{job_of(folder, number)}.log"
    return path.read_text() if path.is_file() else ""


def ended(folder):
    """Waits until every job of a sweep and its gather job have ended."""
    names = {one.job for one in folder.submitted()}
    wait_until(
        lambda: not any(job.partition("_")[0] in names for job in jobs()), f"the end of {folder.path}", every=0.5
    )


def gathered(folder):
    """What the newest gather job printed."""
    (gather,) = [one for one in folder.submitted() if not one.chunk][-1:]
    return Path(gather.log).read_text()
