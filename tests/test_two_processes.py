"""Two processes over gloo: the same masks on both, and the weights of one process with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import ddp_worker
import pytest
import torch

from pdp.methods.options import OPTIONS
from pdp.records import read_record

ROOT = Path(__file__).resolve().parent.parent


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


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
