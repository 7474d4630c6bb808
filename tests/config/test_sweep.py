"""Sweep arguments: the same cells for -m, Slurm and W&B; stored sweeps; W&B's form of a sweep."""

import itertools

import pytest
import yaml

from pdp.config import sweep
from pdp.config.compose import compose
from pdp.errors import Refusal
from scripts import wandb_sweep


def test_the_cells_are_the_product_in_order_and_say_what_varies():
    _, cells = sweep.lay_out(["model=resnet20", "method=pdp,gmp", "sparsity=0.8,0.9", "seed=range(0,2)"])
    assert [cell.varied for cell in cells] == [
        f"method={method} sparsity={sparsity} seed={seed}"
        for method, sparsity, seed in itertools.product(("pdp", "gmp"), (0.8, 0.9), (0, 1))
    ]
    assert all(cell.overrides[0] == "model=resnet20" for cell in cells)


@pytest.mark.parametrize("name", sweep.stored_sweeps())
def test_every_stored_sweep_composes_and_has_a_form_for_wandb_with_the_same_cells(name, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "/data/imagenet")
    # The large ones at one of their sparsities.
    typed = ["model=resnet20", *(["sparsity=0.9"] if name.startswith("imagenet_") else [])]
    words = sweep.stored_words(name, typed)
    _, cells = sweep.lay_out(words)
    configs = [compose(cell.overrides) for cell in cells]
    assert len(cells) > 1 and all(config.model.name == "resnet20" for config in configs)
    target = tmp_path / "sweep.yaml"
    assert wandb_sweep.main([name, *typed, "--to", str(target)]) == 0
    form = yaml.safe_load(target.read_text())
    assert form["program"] == "train.py" and form["method"] == "grid" and "${args_no_hyphens}" in form["command"]
    lists = {key: one.get("values", [one.get("value")]) for key, one in form["parameters"].items()}
    assert lists.pop("tracker") == ["wandb"]
    # What the agent would call is composed, and is the same set of runs.
    called = [
        [f"{key}={value}" for key, value in zip(lists, values, strict=True)]
        for values in itertools.product(*lists.values())
    ]
    assert sorted(map(repr, map(compose, called))) == sorted(map(repr, configs))


def test_typed_words_come_instead_of_the_stored_ones():
    words = sweep.stored_words("baselines", ["seed=7", "model=resnet20"])
    assert [word for word in words if word.startswith("seed")] == ["seed=7"]
    assert words[-1] == "model=resnet20" and any(word.startswith("method=pdp,") for word in words)


def test_what_is_no_sweep_is_refused(tmp_path, monkeypatch):
    with pytest.raises(Refusal, match="did you mean baselines"):
        sweep.read_sweep("baseline")
    monkeypatch.setattr(sweep, "SWEEPS", tmp_path)
    for text in ("", "- a", "seed: []", "seed: {a: 1}"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(Refusal, match=r"bad\.yaml"):
            sweep.read_sweep("bad")


def test_a_refused_cell_refuses_the_form_for_wandb():
    with pytest.raises(Refusal, match=r"did you mean 0\.866"):
        wandb_sweep.main(["baselines", "model=resnet20", "sparsity=0.8,86.6"])
