"""recipe.compile=graphs: the same losses, weights and masks as without, for methods of every kind; needs a GPU."""

import json
from pathlib import Path

import pytest
import torch

from pdp.config.compose import compose
from pdp.runs.record import read_record
from pdp.training.run import train

pytestmark = pytest.mark.slow

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WORDS = ["model=resnet20", "data=digits", "recipe.epochs=4", "recipe.batch_size=64", "data.limit=512", "rerun=true"]


def history(words, folder):
    given = {word.partition("=")[0]: word for word in [*WORDS, *words, f"output_dir={folder}"]}
    train(compose(list(given.values())))
    (found,) = Path(folder).glob("*/seed0/history.jsonl")
    return read_record(found.parent), [json.loads(line) for line in found.read_text().splitlines()]


@needs_gpu
@pytest.mark.parametrize(
    "method", ["dense", "pdp", "pdp_annealed", "gmp", "str", "granet", "acdc", "optg", "rigl", "movement", "cs"]
)
def test_losses_are_those_of_eager_steps(method, tmp_path):
    words = [f"method={method}"] + ([] if method == "dense" else ["sparsity=0.9"])
    torch.backends.cudnn.deterministic = True
    _, eager = history([*words, "device=cuda"], tmp_path / "eager")
    _, graphs = history([*words, "device=cuda", "recipe.compile=graphs"], tmp_path / "graphs")
    for one, other in zip(eager, graphs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-3)
        assert other["sparsity"] == pytest.approx(one["sparsity"], abs=2e-3)


def test_on_the_cpu_it_changes_nothing(tmp_path):
    words = ["method=gmp", "sparsity=0.5", "recipe.epochs=2", "recipe.lr_warmup=0", "data.limit=128", "device=cpu"]
    one, _ = history(words, tmp_path / "eager")
    other, _ = history([*words, "recipe.compile=graphs"], tmp_path / "graphs")
    assert (one.metric, one.config_hash) == (other.metric, other.config_hash)
