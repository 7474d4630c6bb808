"""Two processes over gloo: the same masks on both, and the weights of one process with the same global batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ddp_worker
import pytest
import torch

from pdp.methods.options import OPTIONS
from pdp.records import read_record

ROOT = Path(__file__).resolve().parent.parent


LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *LAUNCHER, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("method", sorted(set(OPTIONS) - {"dense"}))
def test_masks_are_equal_on_both_and_weights_are_those_of_one_process(method, tmp_path):
    done = launch("tests/ddp_worker.py", str(tmp_path), method)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, state in one["state"].items():
        assert all(torch.equal(value, two["state"][name][key]) for key, value in state.items())
        assert torch.equal(one["keep"][name], two["keep"][name])
    alone, pruner = ddp_worker.train(0, 1, method)
    for key, value in alone.state_dict().items():
        assert torch.equal(one["model"][key], two["model"][key])
        assert torch.allclose(one["model"][key], value, rtol=1e-9, atol=1e-12)
    assert pruner.share == pytest.approx(0.8, abs=0.01)
    for layer in pruner.layers:
        assert torch.equal(pruner.method.keep(layer), one["keep"][layer.name])


def test_a_run_in_two_processes_leaves_one_record(tmp_path):
    arguments = ["model=resnet20", "sparsity=0.7", "debug=smoke", "device=cpu", f"output_dir={tmp_path}"]
    done = launch("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*/seed0")
    record = read_record(run)
    assert record.world_size == 2
    assert record.sparsity == pytest.approx(0.7, abs=1e-5)
    assert done.stdout.count("run: ") == 1


def test_a_process_that_dies_takes_the_run_down_in_a_line_and_the_restart_goes_on(tmp_path):
    run = [
        "model=resnet20",
        "sparsity=0.7",
        "recipe.epochs=6",
        "data.limit=320",
        "device=cpu",
        f"output_dir={tmp_path}",
    ]
    first = subprocess.Popen(
        [sys.executable, *LAUNCHER, "train.py", *run],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    history = None
    while not history or len(history.read_text().splitlines()) < 2:
        assert first.poll() is None, first.communicate()
        history = next(tmp_path.glob("*/seed0/history.jsonl"), None)
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True)
    last = max(int(line) for line in children.stdout.split())
    os.kill(last, signal.SIGKILL)
    _, error = first.communicate(timeout=120)
    assert first.returncode != 0
    assert "train: another process of the run is gone" in error
    second = launch("train.py", *run)
    assert second.returncode == 0, second.stderr
    assert "going on from epoch" in second.stdout
    (record,) = tmp_path.glob("*/seed0/record.json")
    assert read_record(record.parent).world_size == 2
    assert [line["epoch"] for line in map(json.loads, history.read_text().splitlines())] == list(range(6))


def test_every_sample_is_measured_once_whatever_the_number_of_processes(tmp_path):
    # 359 test images do not divide by two; the metric is a count over 359 either way.
    done = launch(
        "train.py",
        "model=resnet20",
        "prune=none",
        "recipe.epochs=3",
        "data.limit=360",
        "device=cpu",
        f"output_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*/seed0")
    top1 = read_record(run).metric
    assert (top1 * 359) == pytest.approx(round(top1 * 359))
    alone = subprocess.run(
        [sys.executable, "evaluate.py", f"run={run}", "device=cpu"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert f"top1 {top1!r}" in alone.stdout
