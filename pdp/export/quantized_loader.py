"""Loads a quantized model; needs torch and safetensors, nothing of the project that wrote it.

model = torchvision.models.resnet18()            # the plain model that model.json names
load_quantized(model, "folder with model.json and model.safetensors")
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


def load_quantized(model: nn.Module, folder: str | Path) -> nn.Module:
    """Gives the plain `model` the weights of the folder, in place, and puts its activations on their grid."""
    folder = Path(folder)
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))["quantized"]
    stored = load_file(str(folder / "model.safetensors"))
    # Only these belong to the quantization: the model may have tensors of its own that are called scale or zero_point.
    scales = {name: stored.pop(f"{name}.scale") for name in described["weights"]}
    grids = {
        place: (stored.pop(f"{place}.scale"), stored.pop(f"{place}.zero_point").float())
        for place in described["activations"]
    }
    for name, shape in described["weights"].items():
        integers = unpack(stored[name], shape) if described["bits"] == 4 else stored[name]
        stored[name] = integers.float() * scales[name]
    _load(model, stored, folder)
    modules = dict(model.named_modules())
    for place, (scale, zero_point) in grids.items():
        name, _, side = place.rpartition(".")
        if side == "input":
            modules[name].register_forward_pre_hook(_before(scale, zero_point), with_kwargs=True)
        else:
            modules[name].register_forward_hook(_after(scale, zero_point))
    return model.eval()


def _load(model, state, folder):
    """Loads every tensor of the model and no other; a tensor that several of its names share is stored under one."""
    lacking = model.load_state_dict(state, strict=False)
    named = model.state_dict(keep_vars=True)
    loaded = {id(named[name]) for name in state if name in named}
    missing = [name for name in lacking.missing_keys if id(named.get(name)) not in loaded]
    told = [
        f"{which} lacks {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        for which, names in (("this model", lacking.unexpected_keys), ("the folder", missing))
        if names
    ]
    if told:
        raise ValueError(f"{folder} is of another model: {'; '.join(told)}")


def unpack(values: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Integers of 4 bits, two in a byte, the first in the low half."""
    halves = torch.stack([values & 15, values >> 4], 1).reshape(-1).to(torch.int8)
    count = 1
    for one in shape:
        count *= one
    return torch.where(halves > 7, halves - 16, halves)[:count].reshape(shape)


def on_grid(values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """(clamp(round(x / s) + z, 0, 255) - z) * s."""
    return ((torch.round(values / scale) + zero_point).clamp(0, 255) - zero_point) * scale


def _before(scale, zero_point):
    def hook(module, inputs, keywords):
        if inputs and torch.is_tensor(inputs[0]):
            return (on_grid(inputs[0], scale, zero_point), *inputs[1:]), keywords
        for name, value in keywords.items():
            if torch.is_tensor(value):
                return inputs, {**keywords, name: on_grid(value, scale, zero_point)}
        return None

    return hook


def _after(scale, zero_point):
    return lambda module, inputs, output: on_grid(output, scale, zero_point) if torch.is_tensor(output) else None
