"""Signals to process groups: a run with loader workers saves, exits with code 75, and resumes to the same weights."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import same_end, start, start_two, steps_done, wait_for

from pdp.benchmarks.soaking import the_run
from pdp.errors import SavedForRestart
from pdp.training.signals import INTERRUPTED

pytestmark = pytest.mark.kills
SAVED = SavedForRestart.exit_code
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    process = start(folder)
    assert process.wait() == 0, process.output
    return folder


@pytest.fixture(scope="module")
def two_left_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for rank in start_two(folder):
        assert rank.wait() == 0, rank.output
    return folder


def writes(folder):
    return any(folder.glob("*/seed0/checkpoint/.step-*"))


# A busy machine may look after a moment is over: the next one will do.
MOMENTS = {
    "inside an epoch": lambda folder: steps_done(folder) >= 5,
    "in a measurement": lambda folder: steps_done(folder) in (12, 24),
    "while a checkpoint is written": writes,
}


@pytest.mark.parametrize(
    ("workers", "moment", "number"),
    [
        (0, "inside an epoch", signal.SIGTERM),
        (2, "in a measurement", signal.SIGTERM),
        (2, "while a checkpoint is written", signal.SIGUSR1),
        (8, "inside an epoch", signal.SIGTERM),
        (2, "inside an epoch", signal.SIGINT),  # Ctrl-C, once
    ],
)
def test_a_signal_to_the_whole_group_saves(workers, moment, number, left_alone, tmp_path):
    words = [f"data.workers={workers}", "recipe.checkpoint_minutes=0.001"]
    process = start(tmp_path, *words)
    wait_for(lambda: MOMENTS[moment](tmp_path), process)
    process.to_group(number)
    assert process.wait() == SAVED, process.output
    assert f"{number.name}: saved at step" in process.output and "Traceback" not in process.output
    assert "exited unexpectedly" not in process.output
    process = start(tmp_path, *words)
    assert process.wait() == 0, process.output
    assert "going on from epoch" in process.output
    same_end(tmp_path, left_alone)


def test_two_processes_with_workers_save_together(two_left_alone, tmp_path):
    words = ["data.workers=2", "recipe.checkpoint_minutes=0.001"]
    ranks = start_two(tmp_path, *words)
    wait_for(lambda: steps_done(tmp_path) >= 5, *ranks)
    for rank in ranks:
        rank.to_group(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [SAVED, SAVED], ranks[1].output
    ranks = start_two(tmp_path, *words)
    wait_for(lambda: steps_done(tmp_path) >= 24, *ranks)  # the second measurement
    ranks[1].to_group(signal.SIGTERM)  # one alone: they agree on it
    assert [rank.wait() for rank in ranks] == [SAVED, SAVED], ranks[0].output
    assert "another process was signalled" in ranks[0].output
    for rank in start_two(tmp_path, *words):
        assert rank.wait() == 0, rank.output
    same_end(tmp_path, two_left_alone)


def test_a_second_ctrl_c_ends_at_once_in_the_middle_of_a_step(tmp_path):
    """A step takes seconds here: at its end the first one would save, and the second does not wait for it."""
    process = start(tmp_path, "data.workers=2", "recipe.batch_size=1200", "data.limit=1200", "recipe.epochs=200")
    wait_for(lambda: steps_done(tmp_path) >= 1, process)
    process.to_group(signal.SIGINT)
    time.sleep(0.05)
    process.to_group(signal.SIGINT)
    assert process.wait(60) == INTERRUPTED, process.output
    assert "interrupted twice" in process.output
    assert not (the_run(tmp_path) / "record.json").exists()


def test_a_signal_in_a_measurement_saves_what_was_there_before_it(left_alone, tmp_path, monkeypatch):
    """Asked at the third batch of the first measurement: nothing of it is filed, and the next start makes it."""
    from forked import RUN

    from pdp.config.command_line import main
    from pdp.training import trainer

    asked = []

    def seen(self, accelerator, step=0):
        asked.append(step)
        self.name = "SIGTERM"
        return asked.count(12) == 3  # no step of an epoch's last asks, so all of these are the measurement's

    words = [*RUN, f"output_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.StopSignals, "seen", seen)
        assert main("train", words) == SAVED
    assert asked[-3:] == [12, 12, 12]
    assert not (the_run(tmp_path) / "history.jsonl").read_text()
    assert main("train", words) == 0
    same_end(tmp_path, left_alone)


@pytest.mark.parametrize("presses", [1, 2])
def test_in_somebody_s_own_program_the_second_ctrl_c_is_python_s(presses, tmp_path, monkeypatch):
    """pdp.run must not end the program, or the notebook, that called it."""
    import os

    from forked import RUN

    import pdp
    from pdp.distill.objective import Objective
    from pdp.ranks import OWN_PROCESS

    loss, calls = Objective.loss, []

    def pressed(self, model, batch):
        calls.append(1)
        if len(calls) == 3:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        return loss(self, model, batch)

    OWN_PROCESS.set(False)  # which train.py's main, called by other tests here, has set
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Objective, "loss", pressed)
    with pytest.raises(SavedForRestart if presses == 1 else KeyboardInterrupt):
        pdp.run([*RUN, f"output_dir={tmp_path}"], quiet=True)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


ENDS_SLOWLY = """
import atexit, runpy, sys, time
atexit.register(lambda: (print("ending", flush=True), time.sleep(1)))
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("words, code", [(["--help"], 0), (["model=no_such_model"], 2)])
def test_a_signal_while_the_interpreter_exits_changes_no_exit_code(number, words, code):
    command = [sys.executable, "-c", ENDS_SLOWLY, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    assert any(line == "ending\n" for line in process.stdout)
    process.send_signal(number)
    process.stdout.read()
    assert process.wait(60) == code
