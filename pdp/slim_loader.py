"""Loads a slimmed model; needs torch and safetensors, nothing of the project that wrote it.

model = torchvision.models.resnet50()            # the dense model that slim.json names under "model"
load_slim(model, "folder with slim.json and model.safetensors")
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


def load_slim(model: nn.Module, folder: str | Path) -> nn.Module:
    """Gives the dense `model` its slim sizes and weights, in place; raises where it is another model."""
    folder = Path(folder)
    description = json.loads((folder / "slim.json").read_text(encoding="utf-8"))
    for path, sizes in description["modules"].items():
        module = model.get_submodule(path)
        for key, value in sizes.items():
            setattr(module, key, value)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, key))
    state = load_file(str(folder / "model.safetensors"))
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        if key in module._parameters:
            smaller = nn.Parameter(torch.empty_like(tensor))
            # A weight that several modules share is stored once.
            for owner, own in places[id(module._parameters[key])]:
                owner._parameters[own] = smaller
        else:
            module._buffers[key] = torch.empty_like(tensor)
    lacking, unknown = model.load_state_dict(state, strict=False)
    named = dict(model.named_parameters(remove_duplicate=False))
    stored = {id(named[name]) for name in state if name in named}
    wrong = [*unknown, *(name for name in lacking if id(named.get(name)) not in stored)]
    if wrong:
        raise ValueError(f"{folder} is of another model: {', '.join(wrong)}")
    return model
