"""Whole runs that train nothing: pruned at one stroke from another run's weights, recorded, measured again, trained on."""

import json
from pathlib import Path

import pytest
import torch

from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.harness import run
from pdp.runs.checkpoint import read_tensors
from pdp.training.measurement import evaluate_run

pytestmark = pytest.mark.slow

SMALL = ["data.limit=40", "recipe.batch_size=20", "recipe.lr_warmup=0"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(["model=resnet20", "data=digits", "method=dense", "recipe.epochs=1", *SMALL, f"output_dir={root}"])


def made(dense, *words):
    root = Path(dense.directory).parents[1]
    return run([f"from={dense.directory}", *words, f"output_dir={root}"])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "oneshot"])
def test_a_run_without_training_is_measured_and_recorded(dense, method, capsys):
    record = made(dense, f"method={method}", "sparsity=0.7", "recipe.epochs=0", *SMALL)
    assert (record.epochs, record.steps, record.status) == (0, 0, "finished")
    assert record.sparsity == pytest.approx(0.7, abs=1e-5) and record.metric == record.metric_soft
    assert record.metric_before_pruning == pytest.approx(dense.metric)
    lines = [json.loads(line) for line in (Path(record.directory) / "history.jsonl").read_text().splitlines()]
    assert len(lines) == 1 and lines[0]["sparsity"] == pytest.approx(0.7, abs=1e-5)
    told = [note for note in record.notes if "calibration samples" in note]
    assert bool(told) == (method != "oneshot") and all("from 40 calibration" in one for one in told)
    before, after = (read_tensors(Path(one.directory) / "model.safetensors") for one in (dense, record))
    kept = {key: after[key] != 0 for key in after if after[key].dim() > 1}
    same = all(torch.equal(before[key][mask], after[key][mask]) for key, mask in kept.items())
    assert same == (method != "sparsegpt")
    evaluate_run(Path(record.directory), {})
    assert "agrees with the record" in capsys.readouterr().out


def test_training_goes_on_under_the_zeros_by_itself_or_as_pdps_first_mask(dense):
    record = made(dense, "method=wanda", "prune=nm", "recipe.epochs=1", *SMALL)
    assert record.steps == 2 and record.sparsity == 0.5
    zeros = {key: one == 0 for key, one in read_tensors(Path(record.directory) / "model.safetensors").items()}
    shared = {key for key, one in zeros.items() if one.dim() == 4 and one.any()}
    held = made(record, "recipe.epochs=1", "recipe.adapter=lora", "recipe.adapter_targets=[fc]", *SMALL)
    assert held.method == "held" and held.extra_parameters > 0
    after = read_tensors(Path(held.directory) / "model.safetensors")
    # Convolutions are frozen: not a number of them has moved.
    assert all(torch.equal(after[key] == 0, zeros[key]) for key in shared)
    first = made(record, "method=pdp", "start.mask=first", "recipe.epochs=1", *SMALL)
    assert first.pattern == "2:4" and first.sparsity == 0.5 and first.schedule["name"] == "constant"


def test_what_trains_nothing_or_fits_nothing_is_refused(dense):
    start = f"from={dense.directory}"
    for words, told in (
        ([start, "method=gmp", "sparsity=0.5", "recipe.epochs=0"], "recipe.epochs=0 trains nothing, and method=gmp"),
        ([start, "method=wanda", "sparsity=0.5", "allocation=global"], "allocation=global has no meaning"),
        ([start, "method=wanda", "prune=channel", "sparsity=0.5"], "does not know prune=channel"),
        ([start, "method=pdp", "sparsity=0.5", "start.mask=first"], "has no zeros for a first mask"),
        ([start, "method=pdp", "sparsity=0.5", "recipe.adapter=lora", "recipe.epochs=1"], "method=pdp moves them"),
        ([start, "method=wanda", "sparsity=0.5", "recipe.adapter=lora"], "nothing to train with recipe.epochs=0"),
        ([start, "method=wanda", "sparsity=0.5", "recipe.adapter_rank=2"], "add recipe.adapter=lora"),
        ([start, "method=wanda", "sparsity=0.5", "method.calibration=0"], "at least 1 sample"),
        ([start, "method=sparsegpt", "sparsity=0.5", "method.damping=0"], "a finite number above 0"),
    ):
        with pytest.raises(Refusal, match=told):
            compose(words)
