"""Unusual environments: a run reports one line and an exit code, or is not affected."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pdp.benchmarks.soaking import history, the_run
from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import run_directory
from pdp.distill.objective import Objective
from pdp.errors import Refusal, Stopped
from pdp.ranks import process_count, settle_processes
from pdp.runs import holder
from pdp.runs.directory import RunDirectory
from pdp.training.together import wait_until_visible

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
RUN = ["model=resnet20", "sparsity=0.8", "debug=smoke", "device=cpu", "recipe.history_steps=1"]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert main("train", [*RUN, f"output_dir={folder}"]) == 0
    return folder


def same_weights(one, other):
    mine, others = (load_file(the_run(folder) / "model.safetensors") for folder in (one, other))
    return mine.keys() == others.keys() and all(torch.equal(mine[name], value) for name, value in others.items())


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize(
    ("environment", "count", "left"),
    [
        ({}, 1, {}),
        ({"WORLD_SIZE": ""}, 1, {}),
        ({"WORLD_SIZE": "  "}, 1, {}),
        ({"WORLD_SIZE": "1"}, 1, {}),
        ({"WORLD_SIZE": "auto"}, 1, {}),
        ({"WORLD_SIZE": "8"}, 1, {}),
        ({"WORLD_SIZE": "-3", "LOCAL_RANK": "0"}, 1, {}),
        ({"WORLD_SIZE": "8", "RANK": ""}, 1, {}),
        ({"WORLD_SIZE": "x", "RANK": "0"}, 1, {}),
        ({"LOCAL_RANK": "3"}, 1, {}),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"},
            2,
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"},
        ),
        ({"WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, 4, {"WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}),
    ],
)
def test_what_a_platform_sets_makes_no_processes(environment, count, left):
    told = settle_processes(environment)
    assert environment == left and process_count(environment) == count
    assert "\n" not in told


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "two", "RANK": "1"}])
def test_several_processes_that_cannot_meet_are_refused(environment):
    with pytest.raises(Refusal, match="torchrun"):
        settle_processes(dict(environment))


@pytest.mark.parametrize("size", ["", "many", "8"])
def test_a_run_under_a_platform_s_world_size_is_one_process(size, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert main("train", [*RUN, "recipe.epochs=3", f"output_dir={tmp_path}", "dry_run=true"]) == 0
    assert ("no launcher started this process" in capsys.readouterr().err) == (size != "")


# ---------------------------------------------------------------- folders


def test_without_a_home_that_can_be_written_a_run_is_the_same(left_alone, tmp_path):
    """Nothing can be made in this home, nor in the folder for caches below it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "MPL", "NUMBA_"))}
    done = subprocess.run(
        [sys.executable, "train.py", *RUN, f"output_dir={tmp_path}"],
        cwd=ROOT,
        env=environment | {"HOME": "/proc/none", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path, left_alone)


def test_a_full_home_and_a_cache_without_room_are_no_hindrance(tmp_path, monkeypatch):
    """Listings go beside the runs then, and where nothing can be written they are made anew each time."""
    from pdp.environment import cache_folder

    full = Path("/dev/full")  # no folder can be made below it, as on a disk without room
    monkeypatch.setenv("PDP_CACHE_DIR", str(full / "cache"))
    assert cache_folder(tmp_path / "runs") == tmp_path / "runs"
    assert cache_folder("/proc/none") is None
    monkeypatch.delenv("PDP_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/none")
    assert cache_folder(None) is None


@pytest.mark.parametrize("place", ["/proc/none/runs", "/dev/null/runs", "{}/" + "x" * 300])
def test_an_output_dir_that_cannot_be_made_is_refused_in_a_line(place, tmp_path, capsys):
    assert main("train", [*RUN, f"output_dir={place.format(tmp_path)}"]) == Refusal.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "output_dir" in line


@pytest.mark.parametrize("name", ["m" * 300, "é" * 200, "a/" * 200 + "b", "m" * 200 + "-" + "n" * 56])
def test_a_run_s_name_fits_into_a_file_name_and_stays_its_own(name):
    config = compose(["model=timm", "model.name=resnet10t", "sparsity=0.8"])
    config.model.name = name
    one = run_directory(config, "data")
    assert len(one.parent.name.encode()) <= 255
    config.model.name = name + "x"
    other = run_directory(config, "data")
    assert one != other and one.parent.name.endswith(one.parent.name[-8:])


@pytest.mark.parametrize("key", ["model.pretrained", "data.root", "allocation.path", "distill.teacher"])
def test_a_path_with_a_name_too_long_is_refused_in_a_line(key, tmp_path, capsys):
    more = {
        "data.root": ["data=image_folder", "data.noise_if_absent=false"],
        "allocation.path": ["allocation=file"],
        "distill.teacher": ["distill=teacher"],
    }
    words = [*RUN, *more.get(key, []), f"{key}={tmp_path}/{'x' * 300}", f"output_dir={tmp_path}/runs"]
    assert main("train", words) == Refusal.exit_code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- time


def test_a_clock_that_jumps_changes_nothing(left_alone, tmp_path, monkeypatch):
    """An hour back or forth at every look at the clock of the day."""
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 3600)
    assert main("train", [*RUN, "recipe.checkpoint_minutes=0.001", f"output_dir={tmp_path}"]) == 0
    assert same_weights(tmp_path, left_alone)
    assert history(the_run(tmp_path)) == history(the_run(left_alone))


def test_a_renamed_file_that_shows_late_is_waited_for(tmp_path):
    late = tmp_path / "late"
    threading.Timer(0.5, late.touch).start()
    wait_until_visible(late, 60)
    with pytest.raises(Stopped, match="cannot be seen from"):
        wait_until_visible(tmp_path / "never", 0.3)


# ---------------------------------------------------------------- two machines


@pytest.fixture
def quick_beat(monkeypatch):
    monkeypatch.setattr(holder, "BEAT", 0.2)


class Elsewhere(threading.Thread):
    """A process on another machine, whose file lock does not reach this one: all that shows of it is its note."""

    def __init__(self, run, beats=True):
        super().__init__(daemon=True)
        self.note, self.beats, self.ended = run / ".holder", beats, threading.Event()
        run.mkdir(parents=True, exist_ok=True)
        self.write(0)

    def write(self, beat):
        values = {"host": "node7", "pid": 4242, "machine": "another", "token": "theirs", "beat": beat}
        beside = self.note.with_name(".theirs")
        beside.write_text(json.dumps(values))
        beside.replace(self.note)

    def run(self):
        beat = 0
        while not self.ended.wait(0.1):
            beat += 1
            self.write(beat)


def test_a_run_that_another_machine_goes_on_with_is_refused(quick_beat, tmp_path):
    other = Elsewhere(tmp_path / "run")
    other.start()
    with pytest.raises(Refusal, match="in use by process 4242 on node7"):
        RunDirectory(tmp_path / "run").hold()
    other.ended.set()
    other.join()
    mine = RunDirectory(tmp_path / "run")
    mine.hold()  # its machine was given up: nothing beats any more
    mine.check_held()
    mine.release()
    assert not (tmp_path / "run" / ".holder").exists()


def test_of_two_machines_that_start_at_once_one_leaves(quick_beat, left_alone, tmp_path):
    """The other one's note comes over ours after both have begun: this process writes nothing more."""
    mine = RunDirectory(tmp_path / "run")
    mine.hold()
    other = Elsewhere(tmp_path / "run")
    with pytest.raises(Stopped, match="taken by process 4242 on node7"):
        mine.check_held()
    mine.release()
    assert other.note.is_file()  # theirs stays


def test_a_run_taken_by_another_machine_stops_with_3_and_goes_on_later(left_alone, tmp_path, monkeypatch, capsys):
    write = RunDirectory.write_history

    def taken(self, line):
        write(self, line)
        Elsewhere(self.path)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_history", taken)
        assert main("train", [*RUN, f"output_dir={tmp_path}"]) == Stopped.exit_code
    assert "taken by process 4242 on node7" in capsys.readouterr().err
    monkeypatch.setattr(holder, "BEAT", 0.1)
    assert main("train", [*RUN, f"output_dir={tmp_path}"]) == 0
    assert same_weights(tmp_path, left_alone)


# ---------------------------------------------------------------- devices


FAILURES = {
    "lost": (torch.AcceleratorError, "CUDA error: unspecified launch failure\nCUDA kernel errors might be ..."),
    "off the bus": (RuntimeError, "CUDA error: an illegal memory access was encountered"),
    "cuBLAS": (RuntimeError, "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
    "cuDNN": (RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    "memory": (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB."),
}


@pytest.mark.parametrize("failure", list(FAILURES))
def test_a_device_that_fails_ends_the_run_with_3_and_the_same_command_goes_on(
    failure, left_alone, tmp_path, monkeypatch, capsys
):
    """What a device says when it is lost comes out of an operation, as it does here, in the second epoch."""
    kind, words = FAILURES[failure]
    loss, calls = Objective.loss, []

    def failing(self, model, batch):
        calls.append(1)
        if len(calls) == 7:
            raise kind(words)
        return loss(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "loss", failing)
        assert main("train", [*RUN, f"output_dir={tmp_path}"]) == Stopped.exit_code
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1 and ("recipe.batch_size" in told if failure == "memory" else "goes on" in told)
    assert main("train", [*RUN, f"output_dir={tmp_path}"]) == 0
    assert "going on from epoch 2" in capsys.readouterr().out
    assert same_weights(tmp_path, left_alone)
    shutil.rmtree(tmp_path)
