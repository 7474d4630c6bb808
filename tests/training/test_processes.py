"""Two processes over gloo: the same masks on both, and the weights that one process gets with the same global batch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import ddp_worker
import pytest
import torch
from forked import wait_for
from forked_ranks import in_ranks
from small_models import CASES, VARIANT_CASES

from pdp.benchmarks.forked_runs import two_ranks
from pdp.config.command_line import main
from pdp.runs.record import read_record

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *LAUNCHER, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    in_ranks(2, ddp_worker.main, str(folder), log=folder / "log")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def equal(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    return torch.equal(one, two)


@pytest.mark.parametrize(("method", "pattern"), CASES + VARIANT_CASES)
def test_masks_are_equal_on_both_and_weights_are_those_of_one_process(method, pattern, two_processes):
    one, two = (left[f"{method} {pattern}"] for left in two_processes)
    assert equal(one["keep"], two["keep"])
    assert equal(one["state"], two["state"])
    assert equal(one["extras"], two["extras"])
    weights = [key for key in one["model"] if "running" not in key and "batches" not in key]
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in weights)
    assert any(not keep.all() for keep in one["keep"].values())
    if pattern == "channel":
        return  # BatchNorm sees other halves of the batch on each process
    alone = ddp_worker.what_is_left(*ddp_worker.train(0, 1, method, pattern))
    for key, value in alone["model"].items():
        assert torch.allclose(one["model"][key], value, rtol=1e-7, atol=1e-10)
    for name, extra in alone["extras"].items():
        assert torch.allclose(one["extras"][name], extra, rtol=1e-5, atol=1e-6)
    assert equal(one["keep"], alone["keep"])


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """A run in two processes, and what it printed; 359 test images do not divide by two."""
    folder = tmp_path_factory.mktemp("run")
    # Left to choose, a machine with nothing but a CPU must not train the same run twice over.
    device = "device=cpu" if torch.accelerator.is_available() else "device=auto"
    words = ["model=resnet20", "sparsity=0.7", "recipe.epochs=3", "data.limit=360", device]
    done = launch("train.py", *words, f"output_dir={folder}")
    assert done.returncode == 0, done.stderr
    (run,) = folder.glob("*/seed0")
    return run, done.stdout


def test_a_run_in_two_processes_leaves_one_record(run_of_two):
    run, printed = run_of_two
    record = read_record(run)
    assert record.world_size == 2
    assert record.sparsity == pytest.approx(0.7, abs=1e-5)
    assert printed.count("run: ") == 1


def test_every_sample_is_measured_once_whatever_the_number_of_processes(run_of_two, capsys):
    run, _ = run_of_two
    top1 = read_record(run).metric
    assert (top1 * 359) == pytest.approx(round(top1 * 359))  # a count of the test images
    assert main("evaluate", [f"run={run}", "device=cpu"]) == 0
    assert f"top1 {top1!r}" in capsys.readouterr().out


def test_a_process_that_dies_takes_the_run_down_in_a_line_and_the_restart_goes_on(tmp_path):
    run = [
        "model=resnet20",
        "sparsity=0.7",
        "recipe.epochs=6",
        "data.limit=320",
        "device=cpu",
        f"output_dir={tmp_path}",
    ]
    first = two_ranks(run, tmp_path / "log")
    history = None

    def two_epochs():
        nonlocal history
        history = next(tmp_path.glob("*/seed0/history.jsonl"), None)
        return history and len(history.read_text().splitlines()) >= 2

    wait_for(two_epochs, *first)
    first[1].send(signal.SIGKILL)
    assert first[0].wait() not in (0, None)
    assert "train: another process of the run is gone" in first[0].output
    second = two_ranks(run, tmp_path / "log")
    assert [one.wait() for one in second] == [0, 0], second[0].output
    assert "going on from epoch" in second[0].output
    (record,) = tmp_path.glob("*/seed0/record.json")
    assert read_record(record.parent).world_size == 2
    assert [line["epoch"] for line in map(json.loads, history.read_text().splitlines())] == list(range(6))
