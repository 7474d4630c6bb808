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
    state = load_file(str(folder / "model.safetensors"))
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(torch.empty_like(tensor))
        else:
            module._buffers[key] = torch.empty_like(tensor)
    model.load_state_dict(state)
    return model
