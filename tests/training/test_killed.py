"""Real processes that are killed at chosen moments and started again end with the weights of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pdp.benchmarks.forked_runs import Start
from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import run_directory
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.runs.checkpoint import load_newest, save_checkpoint
from pdp.runs.directory import RunDirectory
from pdp.tasks import build_task

pytestmark = pytest.mark.kills

ROOT = Path(__file__).resolve().parents[2]
# 8 epochs of 10 steps, and a line in steps.jsonl after each: dense 0, budget and ramp 1 to 3, full 4 to 7.
RUN = ["model=resnet20", "sparsity=0.8", "recipe.epochs=8", "data.limit=160", "recipe.batch_size=16"]
RUN += ["recipe.augmentation=pad_crop_flip", "recipe.history_steps=1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start_script(folder: Path) -> subprocess.Popen:
    """The command as typed. Most starts below are forked instead, because importing takes longer than such a run."""
    command = [sys.executable, "train.py", *RUN, f"output_dir={folder}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start(folder: Path, *words: str) -> Start:
    folder.mkdir(exist_ok=True)
    return Start([*RUN, *words, f"output_dir={folder}"], folder / "log")


def kill(process: Start) -> None:
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.output


def the_run(folder: Path) -> Path | None:
    return next(folder.glob("*/seed0"), None)


def epochs_done(folder: Path) -> int:
    run = the_run(folder)
    history = run / "history.jsonl" if run else None
    return len(history.read_text().splitlines()) if history and history.is_file() else 0


def steps_done(folder: Path) -> int:
    """How many optimizer steps the run has written a line of."""
    path = next(folder.glob("*/seed0/steps.jsonl"), None)
    return len(path.read_text().splitlines()) if path else 0


def writes_checkpoint(folder: Path) -> bool:
    run = the_run(folder)
    return bool(run) and any((run / "checkpoint").glob(".step-*.pt.*"))


def wait_for(running, reached, every: float = 0.002) -> None:
    while not reached():
        assert running()
        time.sleep(every)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    assert process.wait() == 0, process.output
    return load_file(the_run(folder) / "model.safetensors")


def test_killed_five_times_and_the_same_bit_for_bit(tmp_path, never_killed):
    moments = {
        "dense phase": lambda: steps_done(tmp_path) >= 4,
        "the epoch that fixes the budget": lambda: steps_done(tmp_path) >= 14,
        "ramp": lambda: steps_done(tmp_path) >= 34,
        "a checkpoint's write": lambda: writes_checkpoint(tmp_path),
        "after the ramp": lambda: steps_done(tmp_path) >= 64,
    }
    for moment, reached in moments.items():
        process = start(tmp_path)
        short = moment == "a checkpoint's write"
        wait_for(lambda process=process: process.code is None, reached, 0.0002 if short else 0.002)
        kill(process)
        assert not (the_run(tmp_path) / "record.json").exists()
        if short:
            assert writes_checkpoint(tmp_path), "the kill came too late to be one during the write"
    process = start(tmp_path)
    assert process.wait() == 0, process.output
    assert "going on from epoch" in process.output
    assert not writes_checkpoint(tmp_path)  # what the kill left half-written is gone
    resumed = load_file(the_run(tmp_path) / "model.safetensors")
    assert resumed.keys() == never_killed.keys()
    for key, value in never_killed.items():
        assert torch.equal(resumed[key], value), key
    assert epochs_done(tmp_path) == 8


@pytest.mark.parametrize(
    "words",
    [
        ["method=str"],  # trained extras
        ["method=rigl", "method.update_every=4it"],  # an optimizer whose averages are reset
        ["prune=block", "prune.block=[8,2]"],  # ragged at the stem's 27 columns
    ],
    ids=" ".join,
)
def test_killed_in_the_middle_of_another_method(words, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        process = start(folder, *words)
        if folder == killed:
            wait_for(lambda process=process: process.code is None, lambda: steps_done(killed) >= 44)
            kill(process)
            process = start(folder, *words)
        assert process.wait() == 0, process.output
    assert "going on from epoch" in process.output
    resumed = load_file(the_run(killed) / "model.safetensors")
    for key, value in load_file(the_run(whole) / "model.safetensors").items():
        assert torch.equal(resumed[key], value), key


def test_requests_to_stop_save_at_the_next_step_and_exit_with_75(tmp_path, never_killed):
    script = start_script(tmp_path)
    wait_for(lambda: script.poll() is None, lambda: epochs_done(tmp_path) == 2)
    script.send_signal(signal.SIGTERM)
    output = script.communicate()[0]
    assert script.returncode == SavedForRestart.exit_code and "SIGTERM" in output, output
    process = start(tmp_path)
    wait_for(lambda: process.code is None, lambda: epochs_done(tmp_path) == 4)
    process.send(signal.SIGUSR1)
    assert process.wait() == SavedForRestart.exit_code and "SIGUSR1" in process.output, process.output
    process = start(tmp_path)
    assert process.wait() == 0, process.output
    resumed = load_file(the_run(tmp_path) / "model.safetensors")
    assert all(torch.equal(resumed[key], value) for key, value in never_killed.items())


def test_a_directory_in_use_is_refused(tmp_path, capsys):
    command = ["model=resnet20", "sparsity=0.5", "debug=smoke", f"output_dir={tmp_path}"]
    config = compose(command)
    task = build_task(config)
    task.open_data()
    held = RunDirectory(run_directory(config, task.data_fingerprint))
    held.hold()
    assert main("train", command) == Refusal.exit_code
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    held.release()
    assert main("train", command) == 0


def state(number: int) -> dict:
    return {"number": number, "tensor": torch.full((1000,), float(number))}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "code", "digest lost"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, damage):
    save_checkpoint(tmp_path, state(1), 1)
    newest = save_checkpoint(tmp_path, state(2), 2)
    whole = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = len(whole) // 2
        newest.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "code":
        write_code(newest, tmp_path / "ran")
    else:
        newest.with_suffix(".sha256").unlink()
    told: list[str] = []
    assert load_newest(tmp_path, told.append)["number"] == 1
    assert len(told) == 1 and str(newest) in told[0] and "\n" not in told[0]
    assert not (tmp_path / "ran").exists()


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def write_code(path: Path, made: Path) -> None:
    """A checkpoint with a right digest whose pickle would run code."""
    import hashlib

    torch.save({"number": 3, "bad": Runs(made)}, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")


def test_no_checkpoint_that_can_be_read_is_a_refusal(tmp_path):
    path = save_checkpoint(tmp_path, state(1), 1)
    path.write_bytes(b"nothing of use")
    with pytest.raises(Refusal, match="rerun=true"):
        load_newest(tmp_path, print)
    assert load_newest(tmp_path / "none", print) is None


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 10, 100):
        save_checkpoint(tmp_path, state(step), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:09d}.{kind}" for step in (10, 100) for kind in ("pt", "sha256")
    ]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here: this test needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_in_one_line_and_the_last_checkpoint_survives(small_disk):
    save_checkpoint(small_disk, {"number": 1, "tensor": torch.zeros(100_000)}, 1)
    with pytest.raises(Stopped, match="could not be written") as caught:
        save_checkpoint(small_disk, {"number": 2, "tensor": torch.zeros(200_000)}, 2)
    assert "\n" not in str(caught.value)
    assert load_newest(small_disk, print)["number"] == 1
    assert sorted(path.suffix for path in small_disk.iterdir()) == [".pt", ".sha256"]


def test_a_run_on_a_full_disk_exits_with_3(small_disk):
    # resnet20 with its momentum takes 2.2 MB.
    process = Start([*RUN, f"output_dir={small_disk}"], small_disk.parent / "log")
    assert process.wait() == Stopped.exit_code, process.output
    output = process.output
    assert "Traceback" not in output and "could not be written" in output.splitlines()[-1]
