"""A channel-pruned model made physically smaller: the same function without the channels that are zero."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pdp.errors import Refusal
from pdp.layers import is_conv1d
from pdp.patterns.attention import set_heads
from pdp.patterns.coupling import Coupling, find_couplings, input_columns

# What a description may hold of a module: plain numbers that say its size.
_SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "nf",
    "nx",
    "num_heads",
    "attn_dim",
    "split_size",
    "num_attention_heads",
    "all_head_size",
)


@dataclass
class Slimmed:
    """The smaller model, how many channels each coupling lost, and every module's sizes that differ from the dense."""

    model: nn.Module
    removed: dict[str, tuple[int, int]]  # units gone and units in all
    modules: dict[str, dict[str, int]]


@torch.no_grad()
def slim(model: nn.Module, example_input: Any) -> Slimmed:
    """A copy of `model` without the coupled channels whose filters, biases and norms are exactly zero.

    Raises `Refusal` where no channel is zero or torch-pruning cannot follow the model.
    """
    model = copy.deepcopy(model)
    before = _sizes(model)
    removed: dict[str, tuple[int, int]] = {}
    for coupling in find_couplings(model, example_input):
        if coupling.refused:
            continue
        gone = _zero_units(coupling)
        # A layer cannot be without channels.
        gone = set(sorted(gone)[: coupling.units - 1])
        if gone:
            _remove(model, coupling, gone)
            removed[coupling.name] = (len(gone), coupling.units)
    if not removed:
        raise Refusal("no channel of this model is zero, so nothing can be removed: format=slim is for prune=channel")
    after = _sizes(model)
    return Slimmed(model, removed, {name: values for name, values in after.items() if values != before[name]})


def _sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    return {
        name: {key: value for key in _SIZES if isinstance(value := getattr(module, key, None), int)}
        for name, module in model.named_modules()
    }


def _zero_units(coupling: Coupling) -> set[int]:
    alive = torch.zeros(coupling.units, dtype=torch.bool)
    for part in (*coupling.outputs, *coupling.norms):
        units = torch.tensor(part.units)
        for key in ("weight", "bias"):
            tensor = part.module._parameters.get(key)
            if tensor is not None:
                rows = tensor.t() if key == "weight" and is_conv1d(part.module) else tensor
                some = (rows != 0).reshape(len(units), -1).any(1).cpu()
                alive[units[some]] = True
    return set((~alive).nonzero().reshape(-1).tolist())


def _remove(model: nn.Module, coupling: Coupling, gone: set[int]) -> None:
    for part in coupling.outputs:
        module: Any = part.module
        kept = _kept(part.units, gone)
        _select(module, ("weight",), kept, 1 if is_conv1d(module) else 0)
        _select(module, ("bias",), kept, 0)
        if isinstance(module, nn.Linear):
            module.out_features = len(kept)
        elif is_conv1d(module):
            module.nf = len(kept)
        else:
            if module.groups == module.out_channels and module.groups == module.in_channels and module.groups > 1:
                module.groups = module.in_channels = len(kept)
            module.out_channels = len(kept)
    for part in coupling.norms:
        norm: Any = part.module
        kept = _kept(part.units, gone)
        _select(norm, ("weight", "bias", "running_mean", "running_var"), kept, 0)
        norm.num_features = len(kept)
    for part in coupling.inputs:
        reader: Any = part.module
        _select(reader, ("weight",), _kept(input_columns(part), gone), 0 if is_conv1d(reader) else 1)
        kept = _kept(part.units, gone)
        if isinstance(reader, _ConvNd):
            reader.in_channels = len(kept)
        elif is_conv1d(reader):
            reader.nx = len(kept)
        else:
            reader.in_features = len(kept)
    if coupling.heads is not None:
        set_heads(model.get_submodule(coupling.heads), coupling.units - len(gone))


def _kept(units: list[int], gone: set[int]) -> list[int]:
    return [index for index, unit in enumerate(units) if unit not in gone]


def _select(module: nn.Module, keys: tuple[str, ...], kept: list[int], dim: int) -> None:
    for key in keys:
        for table in cast(Any, (module._parameters, module._buffers)):
            tensor = table.get(key)
            if tensor is not None:
                smaller: Any = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
                if isinstance(tensor, nn.Parameter):
                    smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
                table[key] = smaller
