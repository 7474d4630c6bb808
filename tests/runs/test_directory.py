"""Who may hold a run's directory, while processes live and after they were killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pdp.errors import Refusal
from pdp.runs import directory
from pdp.runs.directory import RunDirectory

# Holds the run, and has forked what a loader's worker is: a process that shares the lock and outlives it for a while.
HOLDS = """
import os, sys, time
from pathlib import Path
from pdp.runs.directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
run.hold()
if os.fork() == 0:
    time.sleep(float(sys.argv[2]))
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path):
    started = []

    def start(seconds):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path / "run"), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("collected", [True, False])
def test_a_killed_process_is_waited_for_until_its_workers_have_gone(holding, tmp_path, collected):
    process = holding(3)
    os.kill(process.pid, signal.SIGKILL)
    if collected:
        process.wait()
    mine = RunDirectory(tmp_path / "run")
    mine.hold()
    assert (tmp_path / "run" / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    mine.release()


def test_a_living_process_is_named_at_once(holding, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "ORPHANS", 3600.0)  # would not end in this test
    process = holding(0)
    with pytest.raises(Refusal, match=f"in use by process {process.pid} on "):
        RunDirectory(tmp_path / "run").hold()


def test_workers_that_stay_are_not_waited_for_without_end(holding, tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "ORPHANS", 0.3)
    process = holding(20)
    process.kill()
    process.wait()
    begun = time.monotonic()
    with pytest.raises(Refusal, match=f"in use by process {process.pid} on "):
        RunDirectory(tmp_path / "run").hold()
    assert time.monotonic() - begun < 20
