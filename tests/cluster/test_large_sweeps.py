"""Sweeps of hundreds of cells: the time they take to prepare, and what is listed of them."""

import pytest
from hydra import compose as hydra_compose
from omegaconf import OmegaConf

from pdp.cluster.manifest import Run, Submission, SweepFolder, find_sweep
from pdp.cluster.plan import make_plan
from pdp.cluster.state import read_states
from pdp.config import arguments
from pdp.config import compose as composition
from pdp.errors import Refusal
from scripts.slurm import status

SWEEP = ["model=resnet20", "debug=smoke", "method=pdp,gmp", "sparsity=0.5,0.6,0.7,0.8,0.9", "seed=range(10)"]


def test_a_hundred_cells_read_their_files_once_for_each_choice_of_files(tmp_path):
    composition._composed_files.cache_clear()
    plan = make_plan([*SWEEP, f"output_dir={tmp_path}"], 1)
    assert len(plan.runs) == 100 and not plan.refused and not plan.twice
    assert len({run.directory for run in plan.runs}) == 100
    assert composition._composed_files.cache_info().misses <= 4


@pytest.mark.parametrize(
    "words",
    [
        ["sparsity=0.8"],
        ["sparsity=0.8", "seed=7", "recipe.lr=1e-3", "recipe.lr_drops=[1ep,2ep]", "recipe.lr_schedule=steps"],
        ["sparsity=0.8", "prune.exclude=['fc','layer1.*']", 'output_dir="a b,c"', "recipe.ema=null"],
        ["method=gmp", "sparsity=0.9", "schedule.ramp=0.2", "data.root='a b'"],
        ["prune=nm", "prune.n=1", "prune.m=4", "data.limit=12", "recipe.clip=1"],
        ["experiment=imagenet/resnet50_random_90", "debug=smoke", "seed=3"],
        ["sparsity=0.8", "model.arguments={num_classes: 3, name: x}", "recipe.compile=true"],
    ],
)
def test_values_set_on_shared_files_are_those_that_hydra_composes(words):
    lines = arguments.prepare(arguments.parse(["model=resnet20", *words]))
    for _ in range(2):  # what is shared stays as it was
        ours = composition._composed(lines)
        with composition.hydra_loader():
            theirs = hydra_compose("config", lines)
        assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)


def make_sweep(folder, count, submitted):
    sweep = SweepFolder(folder)
    runs = [
        Run(number, [f"seed={number}"], "", f"aaaaaaaa-{number}", str(folder / f"seed{number}"))
        for number in range(count)
    ]
    sweep.make(runs)
    if submitted:
        sweep.note_submission(Submission("7", "0001.txt", list(submitted), "log"))
    return sweep


def test_what_was_never_submitted_is_counted_and_not_listed(tmp_path, capsys):
    """Slurm took an array of three and then no more; of a sweep that it took nothing of, there is none."""
    sweep = make_sweep(tmp_path / "runs" / ".sweeps" / "one", 8, range(3))
    (tmp_path / "runs" / ".sweeps" / "one" / "seed5").mkdir()
    (tmp_path / "runs" / ".sweeps" / "one" / "seed5" / "record.json").write_text("{}")  # finished before
    assert [one.run.number for one in read_states(sweep, ask_slurm=False)] == [0, 1, 2, 5]
    assert status.main([str(sweep.path), "--no-slurm"]) == 0
    told = capsys.readouterr().out
    assert "4 runs: " in told and "4 more of this sweep were never submitted" in told and "aaaaaaaa-7" not in told
    make_sweep(tmp_path / "runs" / ".sweeps" / "two", 8, ())
    assert find_sweep(None, tmp_path / "runs").path == sweep.path
    with pytest.raises(Refusal, match="no sweep was submitted"):
        make_sweep(tmp_path / "others" / ".sweeps" / "two", 8, ())
        find_sweep(None, tmp_path / "others")
