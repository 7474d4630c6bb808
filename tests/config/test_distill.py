"""The teacher in the configuration: refusals, identity, and the command of the dense run."""

import json
import re
import shlex

import pytest

from pdp.config.command import command_of, flat
from pdp.config.compose import compose
from pdp.config.help import help_text
from pdp.config.identity import config_hash, dense_cell, run_directory
from pdp.config.schema import TeacherConfig
from pdp.config.stored import from_yaml, to_yaml
from pdp.errors import Refusal

BASE = ["model=resnet20", "sparsity=0.5"]
DATA = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distill=none", "distill.weight=0.5"], "distill.weight distill=none add distill=teacher"),
        (["distill.temperature=2"], "distill.temperature distill=teacher"),
        (["distill.name=teacher"], "distill.name=teacher distill=<name>"),
        (["distill=techer"], "distill=techer did you mean teacher?"),
        (["distill=teacher", "distill.temprature=2"], "distill.temprature did you mean temperature?"),
        (["distill=teacher", "distill.temperature=0"], "distill.temperature=0 above 0"),
        (["distill=teacher", "distill.temperature=inf"], "distill.temperature=inf finite"),
        (["distill=teacher", "distill.weight=1.1"], "distill.weight=1.1 from 0 to 1"),
        (["distill=teacher", "distill.weight=95"], "distill.weight=95 from 0 to 1"),
        (["distill=teacher", "distill.weight=0"], "distill.weight=0 distill.hidden=0 distill=none"),
        (["distill=teacher", "distill.hidden=-1"], "distill.hidden=-1 from 0 up"),
        (["distill=teacher", "distill.attention=nan"], "distill.attention=nan from 0 up"),
        (["distill=teacher", "distill.cache=ram"], "distill.cache=ram disk none"),
        (
            ["distill=teacher", "distill.cache=disk", "data=cifar10"],
            "distill.cache=disk recipe.augmentation=pad_crop_flip",
        ),
        (["distill=teacher", "distill.cache=disk", "distill.hidden=1"], "distill.cache=disk distill.hidden=0"),
        (["distill=teacher", "distill.teacher=/no/such"], "distill.teacher=/no/such exist hub null"),
        (["distill=teacher", "distill.teacher=''"], "distill.teacher= exist"),
    ],
    ids=lambda value: " ".join(value)[-50:] if isinstance(value, list) else None,
)
def test_refused(overrides, words):
    with pytest.raises(Refusal) as caught:
        compose([*BASE, *overrides])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words.split()), message


def test_a_directory_that_is_no_finished_run_is_refused(tmp_path):
    def refusal() -> str:
        with pytest.raises(Refusal, match=re.escape(f"distill.teacher={tmp_path}")) as caught:
            compose([*BASE, "distill=teacher", f"distill.teacher={tmp_path}"])
        return str(caught.value)

    assert "neither a run's directory nor a folder of weights" in refusal()
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "config.yaml").touch()
    assert f"distill.teacher={tmp_path / 'seed0'}" in refusal()
    (tmp_path / "config.yaml").touch()
    assert "record.json" in refusal()
    (tmp_path / "record.json").touch()
    assert "model.safetensors" in refusal()


def test_null_is_the_methods_own_weight_and_true_is_the_hub():
    def distill(*overrides: str) -> TeacherConfig:
        return compose([*BASE, "distill=teacher", *overrides]).distill

    assert distill().weight == 0.95 and distill("method=gmp").weight == 0.9
    assert distill("distill.weight=0.2").weight == 0.2
    assert distill("distill.teacher=true").teacher == distill("distill.teacher=hub").teacher == "hub"
    assert compose(["model=resnet20", "method=dense", "distill=teacher"]).distill.weight == 0.9


def test_yaml_there_and_back():
    config = compose([*BASE, "distill=teacher", "distill.temperature=3"])
    assert from_yaml(to_yaml(config)) == config and type(from_yaml(to_yaml(config)).distill) is TeacherConfig


def hash_of(*overrides: str, data: str = DATA) -> str:
    return config_hash(compose([*BASE, "distill=teacher", *overrides]), data)


def test_what_moves_the_hash_of_a_run_with_a_teacher():
    others = ["distill.temperature=3", "distill.weight=0.5", "distill.hidden=1", "distill.teacher=hub"]
    hashes = {hash_of(), config_hash(compose(BASE), DATA), *(hash_of(one) for one in others)}
    assert len(hashes) == len(others) + 2
    assert hash_of("distill.weight=0.95") == hash_of("distill.cache=disk") == hash_of("seed=7") == hash_of()
    assert hash_of(data="f") != hash_of()


def test_the_seeds_of_a_cell_with_its_dense_teacher_lie_together():
    places = [run_directory(compose([*BASE, "distill=teacher", f"seed={seed}"]), DATA) for seed in (0, 1)]
    assert places[0].parent == places[1].parent and places[0] != places[1]


def test_the_teacher_enters_by_content(tmp_path):
    config = compose([*BASE, "distill=teacher"])

    def of(name: str) -> str:
        config.distill.teacher = str(tmp_path / name)
        return config_hash(config, DATA)

    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (tmp_path / name).write_bytes(content)
    assert of("a.pth") == of("b.pth") != of("c.pth")
    for name, digest, seed in (("run", "ab", 0), ("copy", "ab", 0), ("seed", "ab", 1), ("other", "cd", 0)):
        (tmp_path / name).mkdir()
        for file in ("config.yaml", "model.safetensors"):
            (tmp_path / name / file).write_text(name)
        (tmp_path / name / "record.json").write_text(json.dumps({"config_hash": digest, "seed": seed}))
    assert of("run") == of("copy") and len({of("run"), of("seed"), of("other")}) == 3
    for name, content in (("f", "1"), ("g", "1"), ("h", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(content)
    assert of("f") == of("g") != of("h")


def test_the_dense_cell_has_the_same_model_data_and_recipe_and_nothing_of_pruning():
    config = compose([*BASE, "distill=teacher", "recipe.epochs=7", "seed=3", "prune.exclude=[fc]", "schedule=cubic"])
    dense = dense_cell(config)
    assert dense == compose(["model=resnet20", "method=dense", "recipe.epochs=7", "seed=3"])
    assert config.distill.name == "teacher" and config.method.name == "pdp"  # the one it came from stays


@pytest.mark.parametrize(
    "overrides",
    [
        [*BASE, "debug=smoke", "seed=3", 'output_dir="/tmp/a b,c\'d"'],
        ["experiment=imagenet/resnet50_random_90", "data.root=/data/i", "recipe.precision=bf16"],
        ["model=timm", "model.name=resnet10t", "sparsity=0.5", "model.arguments={drop_rate: 0.1, a: [1, x]}"],
        [
            "model=mobilenet_v1",
            "sparsity=0.5",
            "data=cifar10",
            "recipe=digits",
            "recipe.nesterov=false",
            "recipe.lr=1e-5",
        ],
        [*BASE, "method=gmp", "recipe.lr_warmup=0.10", "recipe.clip=1", "recipe.ema=0.99", "data.root=null"],
    ],
    ids=lambda overrides: " ".join(overrides)[:40],
)
@pytest.mark.parametrize("dense", [True, False])
def test_a_command_makes_its_configuration(overrides, dense):
    config = compose([*overrides, "dry_run=true"])
    config = dense_cell(config) if dense else config
    python, program, *typed = shlex.split(command_of(config))
    assert (python, program) == ("python", "train.py")
    again = compose([*typed, "dry_run=true"])
    assert flat(again) == flat(config)
    assert run_directory(again, DATA) == run_directory(config, DATA)


def test_help_knows_the_teacher():
    assert "*none, teacher" in help_text("train")
    text = help_text("train", ["distill=teacher"])
    for key in ("distill.teacher=null", "distill.temperature=2", "distill.weight=null", "distill.cache=none"):
        assert key in text
