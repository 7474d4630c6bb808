"""A sharded language model (recipe.sharding=fsdp) on two nodes of a real Slurm, killed and requeued, ends equal."""

import subprocess

import pytest
import torch
from safetensors.torch import load_file
from slurm_jobs import ended, history, job_of, kill, log_of, processes_of, submit_sweep, trains, wait_until
from tiny_language import TINY, write_text

from pdp.benchmarks.forked_runs import two_ranks
from pdp.runs.record import read_record

pytestmark = pytest.mark.slurm

SHARDED = [*TINY, "recipe.epochs=9", "recipe.sharding=fsdp", "recipe.checkpoint_minutes=0.01"]


def test_a_sharded_run_on_two_nodes_killed_and_requeued_is_the_undisturbed_one(warm, tmp_path):
    words = [*SHARDED, f"data.root={write_text(tmp_path / 'text')}"]
    with warm():
        folder = submit_sweep([*words, f"output_dir={tmp_path}/nodes"], "--nodes", "2", "--gpus", "0")
    (run,) = folder.runs()
    nodes = set()
    for epoch, strike in ((2, "a rank is killed"), (4, "scontrol requeue")):
        wait_until(lambda epoch=epoch: trains(folder, 0, "text") and len(history(run)) >= epoch, f"epoch {epoch}")
        starts = log_of(folder, 0).count("job: run ")
        if strike == "scontrol requeue":
            subprocess.run(["scontrol", "requeue", job_of(folder, 0)], check=True)
        else:
            ranks = wait_until(lambda: len(found := processes_of(folder, 0)) == 2 and found, "two ranks")
            nodes = {one.environ()["SLURMD_NODENAME"] for one in ranks}
            assert kill(ranks[1:])
        wait_until(lambda starts=starts: log_of(folder, 0).count("job: run ") > starts, f"the start after {strike}")
    ended(folder)
    log = log_of(folder, 0)
    assert nodes == {"node0", "node1"}
    assert "job: rank 1 of 2 died without a word" in log or "job: rank 0, 1 of 2 died without a word" in log
    assert "Traceback" not in log
    assert log.count("job: run ") == 3 and log.count("going on from epoch") == 2, log
    assert [line["epoch"] for line in history(run)] == list(range(9))
    record = read_record(run.path)
    assert record.world_size == 2
    assert [(one["sharding"], one["processes"]) for one in record.ran_under] == [("fsdp", 2)]

    for rank in two_ranks([*words, f"output_dir={tmp_path}/alone"], tmp_path / "log"):
        assert rank.wait() == 0, rank.output[-3000:]
    (other,) = (tmp_path / "alone").glob("*/seed0")
    undisturbed = read_record(other)
    for key in ("config_hash", "metric", "metric_best", "sparsity", "params_nonzero", "steps"):
        assert getattr(record, key) == getattr(undisturbed, key), key
    weights, expected = load_file(run.path / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
