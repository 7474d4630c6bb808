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
    state = {}
    for name, value in stored.items():
        if name in described["weights"]:
            shape = described["weights"][name]
            integers = unpack(value, shape) if described["bits"] == 4 else value
            state[name] = integers.float() * stored[f"{name}.scale"]
        elif not name.endswith((".scale", ".zero_point")):
            state[name] = value
    lacking = model.load_state_dict(state, strict=False)
    if lacking.unexpected_keys:
        raise ValueError(f"{folder} is of another model: {', '.join(lacking.unexpected_keys)}")
    modules = dict(model.named_modules())
    for place in described["activations"]:
        name, _, side = place.rpartition(".")
        scale, zero_point = stored[f"{place}.scale"], stored[f"{place}.zero_point"].float()
        if side == "input":
            modules[name].register_forward_pre_hook(_before(scale, zero_point))
        else:
            modules[name].register_forward_hook(_after(scale, zero_point))
    return model.eval()


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
    return lambda module, inputs: (on_grid(inputs[0], scale, zero_point), *inputs[1:])


def _after(scale, zero_point):
    return lambda module, inputs, output: on_grid(output, scale, zero_point)
