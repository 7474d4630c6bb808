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
from pdp.runs.record import write_json

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


@pytest.mark.parametrize("name", ["record.json", "ending.json", "model.safetensors", "checkpoint/step-000000007.pt"])
def test_what_a_process_left_that_was_killed_while_writing_goes_and_nothing_else(tmp_path, name):
    run = RunDirectory(tmp_path / "run")
    (run.checkpoints).mkdir(parents=True)
    kept = {"record.json.4711", ".holder.12345678", ".notes", "history.jsonl", "checkpoint/step-000000007.pt"}
    whole = run.path / name
    left = {whole.with_name(f".{whole.name}.4711"), run.path / ".history.jsonl", run.path / ".steps.jsonl"}
    for path in (*left, *(run.path / one for one in kept)):
        path.write_text("{")
    run.hold()
    run.release()
    assert not [path for path in left if path.exists()]
    assert all((run.path / one).exists() for one in kept)


def test_json_that_cannot_be_written_leaves_the_old_one_and_no_part(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"metric": 1.0})
    with pytest.raises(TypeError):
        write_json(path, {"metric": 2.0, "wrong": object()})
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"] and '"metric": 1.0' in path.read_text()
