"""What a run measures, keeps and ships of its weights: their average, recalibrated norms; and runs that are refused."""

import json
from pathlib import Path

import pytest
import torch

from pdp.config.command_line import main
from pdp.runs.record import read_record
from pdp.training import pruning_notes
from pdp.training.export_run import ExportedRun

pytestmark = pytest.mark.slow

BASE = ["model=resnet20", "device=cpu", "data.limit=200", "recipe.batch_size=20", "recipe.lr_warmup=0.2"]


def train(folder: Path, *words: str) -> Path:
    assert main("train", [*BASE, *words, f"output_dir={folder}"]) == 0
    (record,) = folder.glob("*/*/record.json")
    return record.parent


def accuracy(run: Path, part: str) -> float:
    """The share that the saved weights, in the plain model, name rightly."""
    exported, right, count = ExportedRun(run), 0, 0
    exported.model.eval()
    with torch.no_grad():
        for batch in exported.task.evaluation_loader(part, 500, 0):
            right += int((exported.model(batch["image"]).argmax(1) == batch["label"]).sum())
            count += len(batch["label"])
    return right / count


@pytest.mark.parametrize(
    "words",
    [["method=pdp_annealed"], ["method=gmp"], ["prune=channel", "sparsity=0.5"], ["prune=nm", "method=pdp"]],
    ids=" ".join,
)
def test_the_average_is_measured_under_masks_of_its_own(words, tmp_path):
    share = [] if any(word.startswith(("sparsity", "prune=nm")) for word in words) else ["sparsity=0.95"]
    run = train(tmp_path, "recipe.epochs=2", "schedule.unit=step", "recipe.ema=0.9", *words, *share)
    record, last = read_record(run), json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    assert last["metric"] == accuracy(run, "validation")  # what is chosen by is what is shipped
    assert record.metric == accuracy(run, "test")
    if record.step_best == record.steps:
        assert record.metric_best == record.metric
    if words == ["method=gmp"]:  # its mask in training is that of the raw weights
        return
    # PDP's soft model has the average's cuts, so that it is not another one by half its accuracy.
    assert abs(record.metric_soft - record.metric) < 0.2


def test_before_pruning_the_average_is_kept(tmp_path, monkeypatch):
    kept, averages, real = [], [], pruning_notes.keep_weights

    def spied(trainer):
        averages.append({name: one.clone() for name, one in trainer.average.module.state_dict().items()})
        own = {name: one.clone() for name, one in trainer.model.state_dict().items()}
        real(trainer)
        assert all(torch.equal(one, own[name]) for name, one in trainer.model.state_dict().items())

    def saved(model, path, main):
        kept.append({name: one.clone() for name, one in model.state_dict().items()})
        return write(model, path, main)

    write = pruning_notes.save_model_weights
    monkeypatch.setattr(pruning_notes, "keep_weights", spied)
    monkeypatch.setattr(pruning_notes, "save_model_weights", saved)
    train(tmp_path, "recipe.epochs=3", "schedule.warmup=1ep", "schedule.ramp=1ep", "sparsity=0.5", "recipe.ema=0.9")
    (average,), (one,) = averages, kept
    assert all(torch.equal(values, one[name]) for name, values in average.items())


@pytest.mark.parametrize("more", [[], ["quantize=int8"]], ids=["floats", "int8"])
def test_the_best_weights_are_measured_as_what_is_shipped(more, tmp_path):
    words = ["method=oneshot", "sparsity=0.7", "recipe.epochs=2", "schedule.warmup=1ep", "recipe.recalibrate_bn=3"]
    record = read_record(train(tmp_path, *words, *more))
    assert record.step_best == record.steps and record.metric_best == record.metric


def test_a_resumed_run_says_what_calibrated_it(tmp_path, monkeypatch):
    from pdp.training import trainer

    words = ["method=sparsegpt", "sparsity=0.7", "allocation=uniform", "recipe.epochs=2"]
    whole = read_record(train(tmp_path / "whole", *words))
    stops = [3, 7]
    with monkeypatch.context() as patch:

        def stop_at(self, accelerator, step=0):
            self.name = "SIGTERM"
            return step in stops and not stops.remove(step)

        patch.setattr(trainer.StopSignals, "seen", stop_at)
        for _ in range(2):
            assert main("train", [*BASE, *words, f"output_dir={tmp_path / 'stopped'}"]) == 75
    again = read_record(train(tmp_path / "stopped", *words))
    assert again.notes == whole.notes and any("calibration samples" in note for note in again.notes)


@pytest.mark.parametrize(
    ("words", "told", "accepted"),
    [
        (["data.limit=40", "recipe.batch_size=128", "recipe.accumulation=4"], "has 40 samples", "recipe.batch_size=40"),
        (["data.limit=90", "recipe.batch_size=128", "recipe.accumulation=4"], "has 90", "recipe.accumulation=1"),
        (["data.limit=7", "recipe.batch_size=16", "recipe.accumulation=8"], "has 7 samples", "recipe.batch_size=7"),
    ],
    ids=["40", "90", "7"],
)
def test_a_step_that_its_samples_cannot_make_is_refused_before_anything_is_written(
    words, told, accepted, tmp_path, capsys
):
    method = ["method=gmp", "sparsity=0.5", "recipe.epochs=2", "schedule.warmup=0", f"output_dir={tmp_path}"]
    assert main("train", [*BASE, *words, *method]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "recipe.accumulation" in one]
    assert told in line and not list(tmp_path.glob("*/*/*"))
    more = [accepted] if "accumulation" in accepted else [accepted, "recipe.accumulation=1"]
    assert main("train", [*BASE, *words, *method, *more]) == 0
    (record,) = tmp_path.glob("*/*/record.json")
    assert read_record(record.parent).steps == 2


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_half_precision_that_a_cpu_would_not_compute_in_is_refused(device, tmp_path, capsys):
    if device == "auto" and torch.accelerator.is_available():
        pytest.skip("there is a device that computes in it")
    words = ["sparsity=0.5", "recipe.epochs=2", "recipe.precision=fp16", f"device={device}", f"output_dir={tmp_path}"]
    assert main("train", [*BASE, *words]) == 2
    assert "recipe.precision=bf16" in capsys.readouterr().err and not list(tmp_path.glob("*/*/*"))


def test_a_dense_part_that_rounds_to_nothing_is_said_to(tmp_path):
    words = ["method=pdp", "sparsity=0.5", "recipe.epochs=3"]
    said = [read_record(train(tmp_path / str(more), *words, *more)).notes for more in ([], ["schedule.unit=step"])]
    assert any("schedule.warmup=0.16 is less than half an epoch of 3" in note for note in said[0])
    assert not any("schedule.warmup" in note for note in said[1])
