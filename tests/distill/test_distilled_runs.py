"""Whole runs with a teacher: from the refusal that names the dense run's command to a run killed and resumed."""

import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pdp.benchmarks.forked_runs import Start, two_ranks
from pdp.config.command_line import main
from pdp.errors import Refusal, SavedForRestart
from pdp.runs.checkpoint import load_newest
from pdp.runs.record import read_record
from pdp.training import trainer

pytestmark = pytest.mark.slow

RECIPE = ["model=resnet20", "recipe.epochs=5", "data.limit=128", "device=cpu"]  # 4 steps an epoch
PRUNED = [*RECIPE, "sparsity=0.7", "distill=teacher"]


def the_run(folder: Path, method: str = "pdp") -> Path:
    (path,) = folder.glob(f"*-{method}-*/seed0")
    return path


def refused(capsys, *arguments: str) -> str:
    assert main("train", list(arguments)) == Refusal.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A folder with the dense run alone."""
    folder = tmp_path_factory.mktemp("dense")
    assert main("train", [*RECIPE, "method=dense", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def distilled(dense, tmp_path_factory):
    """A folder with the dense run and the one that it taught."""
    folder = tmp_path_factory.mktemp("distilled")
    shutil.copytree(dense, folder, dirs_exist_ok=True)
    assert main("train", [*PRUNED, f"output_dir={folder}"]) == 0
    return folder


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "history.jsonl").read_text().splitlines()]


def test_no_dense_run_is_a_refusal_with_the_command_that_makes_it(tmp_path, capsys):
    line = refused(capsys, *PRUNED, f"output_dir={tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()
    assert main("train", [*PRUNED, f"output_dir={tmp_path / 'runs'}", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    command = re.search(r"python train\.py .*", line)[0]
    assert command in shown
    python, program, *arguments = shlex.split(command)
    assert (python, program) == ("python", "train.py")
    assert main("train", [*arguments, "dry_run=true"]) == 0
    assert "resnet20 on digits: dense" in capsys.readouterr().out
    # And it is the run that was looked for, in two epochs of two steps.
    short = ["recipe.epochs=2", "recipe.lr_warmup=1ep", "data.limit=64"]
    short_pruned = [*PRUNED, "schedule.warmup=1ep", "schedule.ramp=1ep", *short, f"output_dir={tmp_path / 'runs'}"]
    command = re.search(r"python train\.py .*", refused(capsys, *short_pruned))[0]
    assert main("train", shlex.split(command)[2:]) == 0
    assert main("train", short_pruned) == 0


def test_a_run_takes_the_dense_one_of_its_cell_and_says_so_in_its_record(distilled, capsys):
    record, teacher = read_record(the_run(distilled)), read_record(the_run(distilled, "dense"))
    assert record.distillation["teacher"].startswith(f"run {teacher.run_id} ")
    assert (record.distillation["weight"], record.distillation["temperature"]) == (0.95, 2.0)
    assert "third party" in record.distillation["weight_source"]
    assert record.params == teacher.params and teacher.distillation == {}
    assert record.sparsity == pytest.approx(0.7, abs=1e-5)
    state = load_newest(the_run(distilled) / "checkpoint", print)
    assert state["model"].keys() == load_file(the_run(distilled, "dense") / "model.safetensors").keys()
    assert state["objective"] == {"teacher": record.distillation["teacher_weights"]}
    assert main("train", [*PRUNED, f"output_dir={distilled}", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert f"teacher: run {teacher.run_id}" in shown and str(the_run(distilled, "dense")) in shown
    assert main("evaluate", [f"run={the_run(distilled)}"]) == 0
    assert "agrees with the record" in capsys.readouterr().out


def test_another_seed_has_no_teacher_yet(dense, capsys):
    line = refused(capsys, *PRUNED, "seed=1", f"output_dir={dense}")
    assert "method=dense" in line and "seed=1" in line


@pytest.fixture(scope="module")
def cached(dense, tmp_path_factory):
    """The same with the teacher's logits cached."""
    folder = tmp_path_factory.mktemp("cached")
    shutil.copytree(dense, folder, dirs_exist_ok=True)
    assert main("train", [*PRUNED, "distill.cache=disk", f"output_dir={folder}"]) == 0
    return folder


def test_cached_logits_give_the_same_run(distilled, cached):
    assert losses(the_run(cached)) == pytest.approx(losses(the_run(distilled)), rel=1e-4)
    assert the_run(cached).parent.name == the_run(distilled).parent.name
    assert not list((the_run(cached) / "checkpoint").glob("teacher*")), "they go when the run is finished"


def test_a_stopped_run_goes_on_bit_for_bit(dense, distilled, tmp_path, monkeypatch):
    def stop_at(self, accelerator, step=0):
        self.name = "SIGTERM"
        return step == 10  # in the third epoch, on the ramp

    shutil.copytree(dense, tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.StopSignals, "seen", stop_at)
        assert main("train", [*PRUNED, f"output_dir={tmp_path}"]) == SavedForRestart.exit_code
    assert main("train", [*PRUNED, f"output_dir={tmp_path}"]) == 0
    assert same_weights(the_run(tmp_path), the_run(distilled))


def test_a_killed_run_goes_on_bit_for_bit_from_the_logits_it_finds(dense, cached, tmp_path, capsys):
    shutil.copytree(dense, tmp_path, dirs_exist_ok=True)
    arguments = [*PRUNED, "distill.cache=disk", f"output_dir={tmp_path}"]
    process = Start(arguments, tmp_path / "log")
    history = None
    while not history or len(history.read_text().splitlines()) < 2:
        assert process.code is None, process.output
        history = next(tmp_path.glob("*-pdp-*/seed0/history.jsonl"), None)
        time.sleep(0.001)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.output
    killed = the_run(tmp_path)
    assert not (killed / "record.json").exists()
    logits = np.load(killed / "checkpoint" / "teacher_logits-0.npy")
    assert logits.shape == (128, 10) and logits.dtype == np.float32 and np.isfinite(logits).all()
    assert main("train", arguments) == 0
    shown = capsys.readouterr().out
    assert "going on from epoch" in shown and "cached already" in shown
    assert same_weights(killed, the_run(cached))


def same_weights(one: Path, other: Path) -> bool:
    mine, its = (load_file(run / "model.safetensors") for run in (one, other))
    return mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in its)


def test_two_processes_share_the_cache(dense, distilled, tmp_path):
    shutil.copytree(dense, tmp_path, dirs_exist_ok=True)
    for rank in two_ranks([*PRUNED, "distill.cache=disk", f"output_dir={tmp_path}"], tmp_path / "log"):
        assert rank.wait() == 0, rank.output
    record = read_record(the_run(tmp_path))
    assert record.world_size == 2 and record.distillation == read_record(the_run(distilled)).distillation | {
        "cache": "disk"
    }


def test_a_teacher_of_another_architecture_is_built_as_its_run_says(tmp_path, capsys):
    large = ["model=mobilenet_v2", "debug=smoke", f"output_dir={tmp_path}"]
    assert main("train", [*large, "method=dense"]) == 0
    teacher = the_run(tmp_path, "dense")
    # ResNet-20 takes images of 8 pixels here, and MobileNet-v2 learned on 32.
    small = ["model=resnet20", "sparsity=0.5", "debug=smoke", "distill=teacher", f"distill.teacher={teacher}"]
    assert "data.image_size" in refused(capsys, *small, f"output_dir={tmp_path}")
    assert main("train", [*small, "data.image_size=32", f"output_dir={tmp_path}"]) == 0
    assert "mobilenet_v2" in read_record(the_run(tmp_path)).distillation["teacher"]
    other = refused(capsys, *small, "data=cifar10", "data.image_size=32", f"output_dir={tmp_path}")
    assert "is a run on digits" in other and "cifar10" in other


def test_a_teacher_for_other_classes_is_refused(dense, tmp_path, capsys):
    weights = tmp_path / "three.safetensors"
    state = load_file(the_run(dense, "dense") / "model.safetensors")
    state |= {"fc.weight": state["fc.weight"][:3].clone(), "fc.bias": state["fc.bias"][:3].clone()}
    save_file(state, weights)
    line = refused(capsys, *PRUNED, f"distill.teacher={weights}", f"output_dir={tmp_path}")
    assert "for 3 classes, not 10" in line and "distill.teacher" in line
    run = tmp_path / "run"
    shutil.copytree(the_run(dense, "dense"), run)
    save_file(state, run / "model.safetensors")
    line = refused(capsys, *PRUNED, f"distill.teacher={run}", f"output_dir={tmp_path / 'out'}")
    assert "is for 3 classes" in line and "has 10" in line
    (run / "model.safetensors").write_bytes(b"nothing of use")
    assert "cannot be read" in refused(capsys, *PRUNED, f"distill.teacher={run}", f"output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_dense_run_can_have_a_teacher_too(dense, tmp_path):
    run = the_run(dense, "dense")
    arguments = [*RECIPE, "method=dense", "distill=teacher", f"distill.teacher={run}", f"output_dir={tmp_path}"]
    assert main("train", arguments) == 0
    record = read_record(the_run(tmp_path, "dense"))
    assert record.distillation["weight"] == 0.9 and record.sparsity == 0
    assert record.config_hash != read_record(run).config_hash
