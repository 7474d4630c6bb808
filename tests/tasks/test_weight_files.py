"""Trainers' weight files: where in a file the weights are, under which names, and what is refused."""

import argparse
import json

import numpy as np
import pytest
import torch
from making import configuration
from safetensors.torch import save_file
from torch import nn

from pdp.errors import Refusal
from pdp.tasks.image_models import build_model
from pdp.tasks.image_weights import load_weights
from pdp.tasks.resnet20 import ResNet20


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    return {key: value.clone() for key, value in ResNet20(10).state_dict().items()}


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def other(state):
    return {key: value + 1 for key, value in state.items()}


def load(path, classes=10):
    model = ResNet20(classes)
    return model, load_weights(model, str(path), classes, ("fc",))


def optimizer_state():
    return {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


options = argparse.Namespace(lr=0.1, data="photos", nested=argparse.Namespace(depth=3))
FORMS = {
    "plain": (lambda s: s, None),
    "torchvision's reference script": (
        lambda s: {"model": s, "optimizer": optimizer_state(), "epoch": 3, "args": options},
        "model was taken",
    ),
    "with its average": (
        lambda s: {"model": other(s), "model_ema": prefixed(s, "module.") | {"n_averaged": torch.tensor(7)}},
        "model and model_ema: model_ema was taken",
    ),
    "timm": (
        lambda s: {"epoch": 3, "arch": "resnet20", "state_dict": other(s), "state_dict_ema": s, "metric": 71.2},
        "state_dict_ema was taken",
    ),
    "lightning": (
        lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}, "loops": {}},
        "state_dict was taken",
    ),
    "lightning with a loss of its own": (
        lambda s: {"state_dict": prefixed(s, "net.") | {"loss.weight": torch.ones(10)}},
        "state_dict was taken",
    ),
    "DDP": (lambda s: prefixed(s, "module."), None),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), None),
    "compiled, then DDP": (lambda s: prefixed(s, "module._orig_mod."), None),
    "DDP, then compiled": (lambda s: {"state_dict": prefixed(s, "_orig_mod.module.")}, "state_dict was taken"),
    "a part compiled": (
        lambda s: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()},
        None,
    ),
    "inside an inside": (
        lambda s: {"checkpoint": {"model": {"state_dict": s}}},
        "checkpoint.model.state_dict was taken",
    ),
    "a name of its own": (lambda s: {"generator": {"x": torch.ones(3)}, "my_net": s}, "my_net was taken"),
    "numbers of numpy": (lambda s: {"state_dict": s, "best": np.float64(0.91), "history": np.arange(3.0)}, None),
    "bfloat16": (lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()}, None),
    "numbers beside them": (lambda s: s | {"epoch": 3, "name": "resnet20"}, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_wherever_a_trainer_left_them(trained, tmp_path, form):
    wrap, said = FORMS[form]
    torch.save(wrap(trained), tmp_path / "checkpoint.pth")
    model, notes = load(tmp_path / "checkpoint.pth")
    for key, value in model.state_dict().items():
        expected = trained[key].bfloat16().float() if form == "bfloat16" and value.is_floating_point() else trained[key]
        assert torch.equal(value, expected), key
    assert (said is None and form != "numbers of numpy" and not notes) or (said or "state_dict") in notes[0]


@pytest.mark.parametrize("kind", ["one file", "parts", "bin", "bin in parts"])
def test_a_folder_as_the_hub_has_it(trained, tmp_path, kind):
    (tmp_path / "config.json").write_text("{}")
    halves = [dict(list(trained.items())[:30]), dict(list(trained.items())[30:])]
    name, save = ("pytorch_model.bin", torch.save) if "bin" in kind else ("model.safetensors", save_file)
    if "parts" not in kind:
        save(trained, tmp_path / name)
    else:
        stem, _, suffix = name.rpartition(".")
        names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
        for part, half in zip(names, halves, strict=True):
            save(half, tmp_path / part)
        index = {"weight_map": {key: part for part, half in zip(names, halves, strict=True) for key in half}}
        (tmp_path / f"{name}.index.json").write_text(json.dumps(index))
    model, notes = load(tmp_path)
    assert notes == [] and all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    if "parts" in kind:
        (tmp_path / names[1]).unlink()
        with pytest.raises(Refusal, match=f"lacks {names[1]}"):
            load(tmp_path)


def test_a_head_for_other_classes_or_none_is_made_anew(trained, tmp_path):
    torch.save(trained, tmp_path / "ten.pth")
    model, (note,) = load(tmp_path / "ten.pth", classes=7)
    assert note.endswith("fc of " + str(tmp_path / "ten.pth") + " is for 10 classes, not 7: it starts random")
    assert torch.equal(model.conv1.weight, trained["conv1.weight"]) and model.fc.weight.shape == (7, 64)
    torch.save({key: value for key, value in trained.items() if not key.startswith("fc.")}, tmp_path / "body.pth")
    model, (note,) = load(tmp_path / "body.pth")
    assert "has no fc: it starts random" in note and torch.equal(model.conv1.weight, trained["conv1.weight"])


def test_both_heads_of_a_distilled_transformer_are_made_anew(tmp_path):
    values = {"library": "timm", "name": "deit_tiny_distilled_patch16_224", "arguments": {"img_size": 32, "depth": 1}}
    model = configuration({"name": "digits"}, values).model
    source, _ = build_model(model, 12)
    torch.save({"model": source.state_dict()}, tmp_path / "deit.pth")
    model.pretrained = str(tmp_path / "deit.pth")
    network, notes = build_model(model, 10)
    assert len(notes) == 3 and "model was taken" in notes[0]
    assert "head of" in notes[1] and "head_dist of" in notes[2] and all("starts random" in note for note in notes[1:])
    assert torch.equal(network.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert network.head.weight.shape == network.head_dist.weight.shape == (10, 192)


def test_what_would_run_code_or_is_no_weights_is_refused_in_one_line(trained, tmp_path, capsys):
    torch.save(nn.Linear(2, 3), tmp_path / "whole.pth")
    torch.save({"model": ResNet20(10), "epoch": 3}, tmp_path / "inside.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save([torch.ones(3)], tmp_path / "list.pth")
    torch.save({"optimizer": optimizer_state()}, tmp_path / "optimizer.pth")
    torch.save(prefixed(trained, "encoder.blocks."), tmp_path / "elsewhere.pth")
    torch.save({"model": {"conv1.weight": trained["conv1.weight"]}}, tmp_path / "little.pth")
    (tmp_path / "folder").mkdir()
    words = {
        "whole.pth": r"pickled torch.nn.modules.linear.Linear, which would run code .* torch.save\(model.state_dict",
        "inside.pth": "pickled pdp.tasks.resnet20.ResNet20, which would run code",
        "empty.pth": "holds no state dict",
        "list.pth": "holds no state dict",
        "optimizer.pth": "holds no state dict|of another model",
        "little.pth": "of another model: it lacks",
        "folder": "without model.safetensors or pytorch_model.bin",
    }
    for name, match in words.items():
        with pytest.raises(Refusal, match=match) as refused:
            load(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert load(tmp_path / "elsewhere.pth")[1] == []  # a name that all of them begin with
