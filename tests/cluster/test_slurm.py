"""Sweeps through a real Slurm: arrays, kills, preemption, time limits, failing cells, several processes and nodes.

All jobs are submitted first and run side by side; each test waits for its own.
"""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from slurm_jobs import (
    LONGEST,
    STOPPED,
    ended,
    gathered,
    history,
    job_of,
    kill,
    log_of,
    processes_of,
    submit_sweep,
    trains,
    wait_until,
)

from pdp.cluster.manifest import find_sweep
from pdp.cluster.state import read_states
from pdp.config.command_line import main as command_line
from pdp.errors import Stopped
from pdp.reports.sweep_table import TIMES
from pdp.runs.record import read_record
from scripts import sweep_table
from scripts.slurm import status, submit

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["model=resnet20", "debug=smoke", "device=cpu"]
# Five seconds a run, of which two run at once, so that after three strokes in nine seconds there is one to kill.
SWEEP = ["model=slowed.Slowed", *SMOKE[1:], "data.image_size=8", "model.arguments={seconds: 0.4}"]
SWEEP += ["method=pdp,gmp,optg", "sparsity=0.8", "seed=0,1"]
FAILING = [*SMOKE, "sparsity=0.8", "recipe.lr=0.1,1e30"]
LAUNCHER = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=null"]
SLOW = ["model=slowed.Slowed", *SMOKE[1:], "data.image_size=8", "sparsity=0.8"]
SLOW += ["data.workers=2", "recipe.checkpoint_minutes=0.02"]  # signals reach the loader's processes too
# Phases of eight seconds; and 84 seconds, of which a job's time limit leaves it a minute at most.
PHASES = [*SLOW, "model.arguments={seconds: 0.3}", "data.limit=80"]
PHASES += ["recipe.epochs=16", "schedule.warmup=5ep", "schedule.ramp=5ep"]
LIMITED = [*SLOW, "model.arguments={seconds: 1.5}", "recipe.epochs=14", "schedule.warmup=3ep", "schedule.ramp=3ep"]
TWO = ["model=slowed.Slowed", *SMOKE[1:], "data.image_size=8", "model.arguments={seconds: 0.15}"]
TWO += ["sparsity=0.7", "data.limit=160", "recipe.epochs=6"]
# How each run of two processes is started; where nothing is said of it, by torchrun on one node and by srun on two,
# which test_sharded_nodes.py does.
LAUNCHES = {
    "srun": ["--processes", "2", "--launch", "srun"],
    "torchrun": ["--processes", "2"],
    "nodes by torchrun": ["--nodes", "2", "--launch", "torchrun"],
}


@pytest.fixture(scope="module")
def scenes(warm, tmp_path_factory):
    """Everything submitted, and what is done to it going on in threads."""
    place = tmp_path_factory.mktemp("runs")
    # With srun, with torchrun and alone, where signals meet it in every phase, ranks are started as a user's are.
    folders = {"phases": submit_sweep([*PHASES, f"output_dir={place}/phases"], "--gpus", "0", "--partition", "low")}
    for seed, (name, options) in enumerate(LAUNCHES.items()):
        words = [*TWO, f"seed={seed}", f"output_dir={place}/two{seed}"]
        with warm() if name == "nodes by torchrun" else nullcontext():
            folders[name] = submit_sweep(words, "--gpus", "0", *options)
    with warm():
        time_limit = ["--gpus", "0", "--time", "2", "--warn", "60"]
        folders["limit"] = submit_sweep([*LIMITED, f"output_dir={place}/limit"], *time_limit)
        folders["sweep"] = submit_sweep([*SWEEP, f"output_dir={place}/sweep"])
        folders["failing"] = submit_sweep([*FAILING, f"output_dir={place}/failing"], "--gpus", "0")
    launched = subprocess.Popen(
        [sys.executable, "train.py", "-m", *FAILING, f"output_dir={place}/launched", *LAUNCHER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folders["launched"] = place / "launched"
    acts = {"phases": interrupt_in_each_phase, "sweep": kill_at_random} | dict.fromkeys(LAUNCHES, kill_a_rank)
    with ThreadPoolExecutor() as pool:
        futures = {name: pool.submit(act, folders[name]) for name, act in acts.items()}
        yield (
            folders,
            futures
            | {"launched": pool.submit(lambda: (launched.communicate(timeout=LONGEST)[0], launched.returncode))},
        )
        STOPPED.set()
        launched.kill()


def interrupt_in_each_phase(folder):
    """Preempts the run while dense, by another job, requeues it while ramping and full, and then asks it to save.

    Returns the phases it was met in, and what status.py had to show of it at the third.
    """
    (run,) = folder.runs()
    met, seen = [], []
    for phase, epochs in (("dense", 1), ("ramp", 6), ("full", 11), ("limit", 12)):
        wait_until(lambda epochs=epochs: trains(folder, 0) and len(history(run)) >= epochs, f"epoch {epochs}")
        if phase == "full":
            seen = read_states(folder)
        starts = log_of(folder, 0).count("job: run ")
        if phase == "dense":
            first = ["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true"]
            subprocess.run(first, check=True)
        elif phase == "limit":
            subprocess.run(["scancel", "--batch", "--signal=USR1", job_of(folder, 0)], check=True)
        else:
            subprocess.run(["scontrol", "requeue", job_of(folder, 0)], check=True)
        wait_until(lambda starts=starts: log_of(folder, 0).count("job: run ") > starts, "the next start")
        met.append(history(run)[-1]["phase"])
    ended(folder)
    return met, seen


def kill_a_rank(folder):
    """Kills one of two processes in the middle."""
    (run,) = folder.runs()
    wait_until(lambda: trains(folder, 0) and len(history(run)) >= 2, "epoch 2")
    wait_until(lambda: len(processes_of(folder, 0)) == 2 and kill(processes_of(folder, 0)[1:]), "two ranks")
    ended(folder)


def kill_at_random(folder):
    """Kills a run's process, preempts a run, and kills a whole job, each at a moment and in a run drawn by chance."""
    chance = random.Random(5)
    runs, done = folder.runs(), []

    def candidates():
        return [one for one in runs if one.number not in done and not one.finished and processes_of(folder, one.number)]

    for kind in ("process", "preemption", "job"):
        time.sleep(chance.uniform(0, 3))
        while True:
            run = chance.choice(wait_until(candidates, "a run to kill", every=0.3))
            if kind == "preemption":
                met = not subprocess.run(["scontrol", "requeue", job_of(folder, run.number)]).returncode
            else:
                above = processes_of(folder, run.number, "pdp.cluster.job") if kind == "job" else []
                met = kill([*above, *processes_of(folder, run.number)])
            if met and not run.finished:  # else it came to its end just then
                break
        done.append(run.number)
    ended(folder)
    return done


def same_as_unkilled(folder, words, place):
    """Runs the same words in this process, and holds every weight and table against them, time columns apart."""
    assert command_line("train", ["-m", *words, f"output_dir={place}"]) == 0
    whole = {path.name: path for path in place.glob("*/seed*")}
    assert whole
    for run in folder.runs():
        other = load_file(place / Path(run.directory).parent.name / Path(run.directory).name / "model.safetensors")
        mine = load_file(Path(run.directory) / "model.safetensors")
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], value) for key, value in other.items()), run.varied
    assert sweep_table.main([str(place)]) == 0
    for name in ("runs.csv", "cells.csv"):
        mine, other = pd.read_csv(folder.path / name), pd.read_csv(place / name)
        times = [column for column in other if column.startswith(TIMES)]
        assert times and len(times) < len(other.columns)
        pd.testing.assert_frame_equal(mine.drop(columns=times), other.drop(columns=times), check_exact=True)


def test_a_failing_cell_leaves_the_others_alone(scenes, capsys):
    folder = scenes[0]["failing"]
    ended(folder)
    good, bad = read_states(folder)
    assert good.state == "done" and (bad.state, bad.code) == ("failed", 3)
    assert "the loss is" in bad.words and "lower recipe.lr=1e+30" in bad.words
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job_of(folder, bad.run.number)], capture_output=True, text=True
    )
    assert "JobState=FAILED" in shown.stdout and "ExitCode=3:0" in shown.stdout
    assert "1 of 2 runs are missing" in gathered(folder)
    assert len(pd.read_csv(folder.path / "runs.csv")) == 1
    capsys.readouterr()
    assert status.main([str(folder.path)]) == 0
    told = capsys.readouterr().out
    assert "failed (3)" in told and "the loss is" in told and "1 done, 1 failed" in told


def test_a_run_interrupted_in_each_phase_is_the_same_bit_for_bit(scenes, tmp_path):
    folders, acts = scenes
    folder = folders["phases"]
    met, seen = acts["phases"].result()
    assert met == ["dense", "ramp", "full", "full"]
    (one,) = seen
    assert (one.state, one.epochs, one.job) == ("running", 16, job_of(folder, 0)) and one.epoch >= 11
    assert one.left > 0 and one.limit  # seconds of training; what is left of the job's time
    log = log_of(folder, 0)
    assert log.count("job: run ") == 5 and log.count("going on from epoch") == 4
    told = [line for line in log.splitlines() if line.startswith("train: SIG")]
    assert len(told) == 4 and "saved at step" in told[0]
    # Where time is left to it a job puts itself back: before its limit, and when preempted unless saving takes longer
    # than Slurm's grace. The others Slurm did itself.
    assert log.count("put back into the queue") in (1, 2)
    same_as_unkilled(folder, PHASES, tmp_path)
    assert [line["epoch"] for line in history(folder.runs()[0])] == list(range(16))


def test_a_run_longer_than_its_time_limit_goes_on_from_start_to_start(scenes):
    folder = scenes[0]["limit"]
    ended(folder)
    log = log_of(folder, 0)
    starts, told = log.count("job: run "), [line for line in log.splitlines() if line.startswith("train: SIGUSR1")]
    # Told in its last moments, the run may be put back once more and be found finished.
    last = log.count("job: finished before")
    assert starts > 1 and log.count("put back into the queue") == starts + last - 1
    assert starts - 1 <= len(told) <= starts + last - 1 and last <= 1
    assert "going on from epoch" in log
    (run,) = folder.runs()
    assert [line["epoch"] for line in history(run)] == list(range(14))


@pytest.mark.parametrize("launch", list(LAUNCHES))
def test_a_rank_that_dies_takes_the_job_down_and_the_requeued_job_goes_on(launch, scenes):
    folders, acts = scenes
    folder = folders[launch]
    acts[launch].result()
    log = log_of(folder, 0)
    assert "job: rank 1 of 2 died without a word" in log or "job: rank 0, 1 of 2 died without a word" in log
    assert log.count("job: run ") >= 2 and "going on from epoch" in log
    ours = log.partition("torch/distributed/elastic")[0]  # torchrun's own report of a lost process has a traceback
    assert "Traceback" not in ours and ("torchrun" in launch or ours == log)
    (run,) = folder.runs()
    assert read_record(Path(run.directory)).world_size == 2
    assert [line["epoch"] for line in history(run)] == list(range(6))


def test_a_sweep_killed_at_random_and_completed_has_the_table_of_the_unkilled_one(scenes, tmp_path, capsys):
    folders, acts = scenes
    folder = folders["sweep"]
    lost = acts["sweep"].result()[-1]
    # No more in an array than this cluster takes, and the gather job.
    assert [len(one.runs) for one in folder.submitted()] == [5, 1, 0]
    states = read_states(folder)
    assert {one.run.number: one.state for one in states if one.state != "done"} == {lost: "lost"}
    assert "1 of 6 runs are missing" in gathered(folder)
    capsys.readouterr()
    words = [*SWEEP, f"output_dir={folder.path.parents[1]}"]
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)  # takes jobs, starts none
    again = submit_sweep(words)
    told = capsys.readouterr().out
    assert again.path == folder.path and "6 runs: 5 finished, 0 in the queue from before, 1 submitted now" in told
    assert submit.main([*words, "--cpus", "1"]) == 0
    assert "5 finished, 1 in the queue from before, 0 submitted now" in capsys.readouterr().out
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=UP"], check=True)
    ended(folder)
    assert "6 runs of" in gathered(folder)
    same_as_unkilled(folder, SWEEP, tmp_path)
    assert find_sweep(None, folder.path.parents[1]).path == folder.path


def test_the_launcher_of_hydra_runs_a_job_a_cell_and_returns_the_worst_exit_code(scenes):
    folders, acts = scenes
    output, code = acts["launched"].result()
    assert code == 3, output
    assert "train: cell 1 of the sweep ended with exit code 3" in output
    (record,) = folders["launched"].glob("*/seed0/record.json")
    assert read_record(record.parent).recipe["lr"] == 0.1


def test_a_refused_cell_is_listed_and_nothing_is_submitted(slurm, tmp_path, capsys):
    words = [*SMOKE, "sparsity=0.8,86.6", "method=pdp,gpm", f"output_dir={tmp_path}/runs"]
    done = subprocess.run([sys.executable, "scripts/slurm/submit.py", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["refused"] * 3 + ["submit"]
    assert "did you mean 0.866" in lines[1] and "3 of 4 cells are refused: nothing is submitted" in lines[3]
    assert not (tmp_path / "runs").exists()


def test_a_cluster_without_the_gpus_asked_for_says_how_to_ask_for_none(slurm, tmp_path):
    words = [*SMOKE, "sparsity=0.8", f"output_dir={tmp_path}/runs", "--sbatch=--gres=none:1"]
    with pytest.raises(Stopped) as refused:
        submit.main(words)
    assert str(refused.value).endswith("give --gpus 0 on a cluster whose nodes have no GPUs")
    assert "\n" not in str(refused.value)
