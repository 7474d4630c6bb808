"""Loads a slimmed model; needs torch and safetensors, nothing of the project that wrote it.

model = torchvision.models.resnet50()            # the dense model that slim.json names under "model"
load_slim(model, "folder with slim.json and model.safetensors")
"""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


def load_slim(model: nn.Module, folder: str | Path) -> nn.Module:
    """Changes the dense `model` in place to its slim sizes and weights; returns it, or raises for another model."""
    folder = Path(folder)
    description = json.loads((folder / "slim.json").read_text(encoding="utf-8"))
    state = load_file(str(folder / "model.safetensors"))
    known = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    modules = dict(model.named_modules())
    stored = {id(known[name]) for name in state if name in known}
    # A weight that several modules share is stored once.
    lacking = [name for name in model.state_dict() if id(known.get(name)) not in stored]
    strange = [name for name in state if name not in known]
    strange += [path for path in description["modules"] if path not in modules]
    if lacking or strange:
        raise ValueError(f"{folder} is of another model: {', '.join([*strange, *lacking])}")
    for path, sizes in description["modules"].items():
        if any(key.startswith("config.") for key in sizes):  # numbers of this module alone
            modules[path].config = copy.deepcopy(modules[path].config)
        for key, value in sizes.items():
            inner, _, name = key.rpartition(".")
            setattr(modules[path].config if inner else modules[path], name, value)
    new: dict[int, torch.Tensor] = {}
    for name, tensor in state.items():
        smaller = torch.empty_like(tensor)
        new[id(known[name])] = nn.Parameter(smaller) if isinstance(known[name], nn.Parameter) else smaller
    for module in modules.values():
        for held in (module._parameters, module._buffers):
            held.update({key: new[id(value)] for key, value in held.items() if id(value) in new})
    model.load_state_dict(state, strict=False)
    return model
