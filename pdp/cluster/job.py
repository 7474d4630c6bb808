"""Runs inside a job: starts one run, passes on requests to stop, and ends with the run's own exit code.

A run that saved itself (exit code 75) or lost a process is put back into the queue and resumed. A job that was
cancelled stays cancelled. Needs no torch, so that it handles signals at once.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from pdp.cluster import slurm
from pdp.cluster.batch import start_command
from pdp.cluster.manifest import Ending, Run, SweepFolder
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.ranks import codes
from pdp.runs.store import is_held

GRACE = {"SIGUSR1": 0.0, "SIGTERM": 2.0}  # seconds before passing it on, in case Slurm has signalled the run itself
SPARE = 15  # seconds before the time limit at which the job stops waiting for a run to save itself
HELD = 120  # seconds to wait for a process that still holds the run, from an earlier start on a failed node
_ENDING = re.compile(r"(?:\[rank\d+\]:\s*)?train(?: \[.*\])?: \S")


class Job:
    """One run of the sweep in one job."""

    def __init__(self, folder: SweepFolder, run: Run, settings: argparse.Namespace):
        self.folder, self.run, self.settings = folder, run, settings
        environment = os.environ
        self.id = environment["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in environment:
            self.id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        self.restart = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self.world_size = settings.nodes * settings.processes
        self.log = folder.logs / f"{self.id}.log"
        self.ranks = folder.ranks / f"{run.number}-{self.id}-{self.restart}"
        self.asked = ""  # the signal that asked the run to stop
        self.asked_at = 0.0
        self.passed_on = False
        self.process: subprocess.Popen[bytes] | None = None
        former = folder.ending(run.number)
        self.retries = former.retries if former and former.job == self.id else 0
        self.started = time.time()

    def work(self) -> int:
        """Runs until the run ends or is requeued; returns the exit code of the job."""
        for one in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(one, self._note_request)
        if self.run.finished:
            self._note(0, "finished before")
            return 0
        self._note(None, "")
        self._say(f"run {self.run.number} [{self.run.varied}] in job {self.id}, start {self.restart + 1}")
        shutil.rmtree(self.ranks, ignore_errors=True)
        self.ranks.mkdir(parents=True)
        if is_held(self.run.path):
            self._say("another process still holds the run's folder: waiting for it")
            wait_until_free(self.run.path, HELD, lambda: bool(self.asked))
        command = start_command(vars(self.settings), self.ranks, self.run.overrides)
        self.process = subprocess.Popen(command)
        status = self._wait()
        code, words, again = self._judge(status)
        shutil.rmtree(self.ranks, ignore_errors=True)
        self._note(code, words)
        if again:
            self._put_back()
        return code

    def _wait(self) -> int | None:
        """The exit status of the run's processes; None if a run that was asked to stop took too long."""
        assert self.process is not None
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=0.5)
            if self.asked and not self.passed_on and time.monotonic() - self.asked_at > GRACE[self.asked]:
                self.process.send_signal(signal.SIGUSR1)
                self.passed_on = True
            if self.asked == "SIGUSR1" and time.monotonic() - self.asked_at > max(5, self.settings.warn - SPARE):
                return None

    def _note_request(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self.asked_at = signal.Signals(number).name, time.monotonic()

    def _judge(self, status: int | None) -> tuple[int, str, bool]:
        """The exit code, the last line of the log, and whether the run is to be started again."""
        saved = SavedForRestart.exit_code
        if status is None:
            return saved, f"{self.asked}: the run did not save in time and goes on from its last checkpoint", True
        ends = codes(self.ranks)
        gone = sorted(set(range(self.world_size)) - set(ends))
        # If one process fails, torchrun asks the others to stop; that does not count as a run that saved itself.
        failed = max((code for code in ends.values() if code not in (0, saved)), default=0)
        if not gone and not any(ends.values()):
            return 0, "", False
        if Refusal.exit_code in ends.values():
            return Refusal.exit_code, self._last_words(), False
        if saved in ends.values() and (self.asked or not (gone or failed)):
            return saved, self._last_words(), True
        if self.asked and (gone or self.world_size > 1):
            return saved, f"{self.asked} before the run could save: it goes on from its last checkpoint", True
        if gone:
            which = f"rank {', '.join(map(str, gone))} of {self.world_size}" if self.world_size > 1 else "the run"
            words = f"{which} died without a word ({_how(status)}): the job goes down, a new start goes on"
            again = self.retries < self.settings.retries
            self.retries += again
            return failed or _shell_code(status), words, again
        return failed, self._last_words(), False

    def _put_back(self) -> None:
        """Requeues the job, unless it was cancelled or Slurm has requeued it."""
        state = slurm.state(self.id)
        if state != "RUNNING":
            self._say(f"the job is {state or 'gone'}: it is left as it is")
        elif self.restart >= self.settings.restarts:
            self._say(f"started {self.restart + 1} times, --restarts {self.settings.restarts}: not put back")
        else:
            self._say("put back into the queue")
            sys.stdout.flush()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the signal by which Slurm now ends this job
            try:
                slurm.requeue(self.id)
            except (Refusal, Stopped) as error:
                self._say(f"{error}: submit the sweep again")
                return
            time.sleep(60)  # if the job ended by itself, Slurm might count it as finished before it is requeued

    def _last_words(self) -> str:
        return last_words(self.log)

    def _note(self, code: int | None, words: str) -> None:
        ending = Ending(self.id, self.restart, code, words, str(self.log), self.started, retries=self.retries)
        if code is not None:
            ending.ended = time.time()
            if words:
                self._say(words)
        self.folder.note_ending(self.run.number, ending)

    def _say(self, words: str) -> None:
        print(f"job: {words}", flush=True)


def wait_until_free(run: Path, longest: float, asked: Callable[[], bool]) -> None:
    """Waits until no process holds the run, for at most `longest` seconds, or until a stop is requested."""
    end = time.monotonic() + longest
    while is_held(run) and time.monotonic() < end and not asked():
        time.sleep(0.5)


def last_words(log: Path) -> str:
    """The line that says how a run ended: ours if there is one, else the last line that is not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("job: run ")]
    lines = lines[starts[-1] + 1 :] if starts else lines
    ours = [line for line in lines if _ENDING.match(line)]
    return (ours or lines or [""])[-1][:300]


def _how(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"{name}; out of memory?" if name == "SIGKILL" else name
    return f"killed or out of memory; exit {status}"


def _shell_code(status: int) -> int:
    return 128 - status if status < 0 else status or 1


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the run that belongs to this array task."""
    parser = argparse.ArgumentParser("job", description=__doc__)
    parser.add_argument("--launch", required=True)
    for name in ("nodes", "processes", "cpus", "warn", "restarts", "retries"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("folder", type=Path)
    parser.add_argument("chunk", type=Path, help="a file of run numbers, of which the array task picks a line")
    settings = parser.parse_args(argv)
    folder = SweepFolder(settings.folder)
    number = int(settings.chunk.read_text().split()[int(os.environ["SLURM_ARRAY_TASK_ID"])])
    return Job(folder, folder.runs()[number], settings).work()


if __name__ == "__main__":
    raise SystemExit(main())
