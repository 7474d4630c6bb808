"""The parts of a job that need no Slurm: how processes are started and find each other, waiting, a run's state."""

import threading
import time

import pytest

from pdp.cluster.batch import Resources, start_command
from pdp.cluster.job import wait_until_free
from pdp.cluster.manifest import Run, SweepFolder
from pdp.cluster.slurm import QueuedTask
from pdp.cluster.state import read_state
from pdp.errors import Refusal
from pdp.ranks import take_rank
from pdp.runs.directory import RunDirectory
from pdp.runs.store import is_held

pytestmark = pytest.mark.slow

SETTINGS = {"nodes": 2, "processes": 4, "cpus": 3, "warn": 120}


def test_the_ranks_of_a_step_of_two_nodes_are_those_that_torch_counts():
    """Four processes on each of two nodes: rank, local rank and sizes as torchrun would set them."""
    found = set()
    for rank in range(8):
        step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "70001"}
        step |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 4)}
        assert take_rank(step) == rank
        assert (step["WORLD_SIZE"], step["LOCAL_WORLD_SIZE"], step["LOCAL_RANK"]) == ("8", "4", str(rank % 4))
        found.add((step["MASTER_ADDR"], step["MASTER_PORT"]))
    assert len(found) == 1 and 1024 < int(found.pop()[1]) < 65536
    assert take_rank({"RANK": "5", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}) == 5  # torchrun below srun
    assert take_rank({}) == 0


def test_several_nodes_are_started_by_srun_with_all_cores_of_their_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "70001")
    by_srun = start_command(SETTINGS | {"launch": "srun"}, tmp_path, ["seed=1"])
    assert by_srun[0] == "srun" and {"--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=3"} <= set(by_srun)
    by_torchrun = start_command(SETTINGS | {"launch": "torchrun"}, tmp_path, ["seed=1"])
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12"} <= set(by_torchrun)
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv-backend=c10d"} <= set(by_torchrun)
    assert by_srun[-1] == by_torchrun[-1] == "seed=1"
    assert Resources(nodes=2, processes=4).started_by == "srun" and Resources(processes=4).started_by == "torchrun"


def test_a_start_waits_for_a_former_one_that_still_holds_the_run(tmp_path):
    former, asked = RunDirectory(tmp_path), []
    former.hold()
    wait_until_free(tmp_path, 0.1, lambda: False)
    assert is_held(tmp_path)  # waited no longer than it should
    wait_until_free(tmp_path, 60, lambda: bool(asked.append(1)) or len(asked) > 1)
    assert is_held(tmp_path) and len(asked) == 2  # asked to end, it left at once
    threading.Timer(0.7, former.release).start()
    wait_until_free(tmp_path, 60, lambda: False)
    RunDirectory(tmp_path).hold()


def test_looking_whether_a_run_is_held_is_in_nobody_s_way(tmp_path):
    """Looks at the run again and again while it is taken and let go; it is refused to another process alone."""
    (tmp_path / ".lock").touch()
    looking, end = threading.Event(), time.monotonic() + 2

    def look():
        while time.monotonic() < end:
            is_held(tmp_path)
            looking.set()
            time.sleep(0.001)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    looking.wait()
    while time.monotonic() < end:
        one = RunDirectory(tmp_path)
        one.hold()
        one.release()
    for thread in threads:
        thread.join()
    first = RunDirectory(tmp_path)
    first.hold()
    with pytest.raises(Refusal, match="is in use by process"):
        RunDirectory(tmp_path).hold()


@pytest.mark.parametrize(
    ("state", "reason", "shown", "words"),
    [
        ("PENDING", "Priority", "queued", "Priority"),
        ("SUSPENDED", "None", "queued", "suspended"),
        ("CONFIGURING", "None", "queued", "configuring"),
        ("REQUEUE_HOLD", "JobHeldUser", "queued", "requeue_hold JobHeldUser"),
        ("RUNNING", "None", "running", ""),
    ],
)
def test_a_job_that_does_not_run_says_why(tmp_path, state, reason, shown, words):
    run = Run(0, ["seed=0"], "", "aaaaaaaa-0", str(tmp_path / "run"))
    found = read_state(SweepFolder(tmp_path), run, QueuedTask("7", 0, state, reason, "1:00", "node0"))
    assert (found.state, found.words, found.job) == (shown, words, "7_0")
