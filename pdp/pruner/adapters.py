"""Low-rank adapters (LoRA, Hu et al. 2022) under a fixed mask: only A and B of m * (W + alpha/r B A) are trained.

The mask m acts on the sum. So the zeros are exact during training, and merging the adapters into W changes no output.
peft's adapters wrap modules instead: they add B A to the output of the masked layer, and the names of weights change.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.layers import Layer, is_conv1d
from pdp.methods.method import Method


class Adapter:
    """A, (r, inputs), and B, (outputs, r), of a linear layer, in the weight's dtype; B starts at zero."""

    def __init__(self, layer: Layer, rank: int, alpha: float, seed: int):
        self.transposed = is_conv1d(layer.sites[0].module)
        weight = layer.weight
        outputs, inputs = weight.shape[::-1] if self.transposed else weight.shape
        # Each layer has a random stream of its own, which is the same on every process.
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + zlib.crc32(layer.name.encode()))
        bound = 1 / math.sqrt(inputs)  # Kaiming's uniform start with a = sqrt(5), as in the authors' code and peft
        first = (2 * torch.rand(rank, inputs, generator=generator) - 1) * bound
        self.a = nn.Parameter(first.to(weight.device, weight.dtype))
        self.b = nn.Parameter(torch.zeros(outputs, rank, dtype=weight.dtype, device=weight.device))
        self.scale = alpha / rank

    def added(self, weight: Tensor) -> Tensor:
        """`weight` + alpha/r B A in the shape of `weight`; differentiable in A and B."""
        product = self.b.to(weight.device) @ self.a.to(weight.device)
        return weight + self.scale * (product.t() if self.transposed else product)


def adapt(
    model: nn.Module,
    layers: Sequence[Layer],
    method: Method,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    trained: Sequence[str],
    seed: int,
) -> list[Adapter]:
    """Adds adapters to linear layers, and freezes the model except for the modules named in `trained`.

    `targets` are fnmatch patterns of names of pruned linear layers; none means all of them. `trained` is for modules
    that have no weights to keep, such as a new head. Raises `Refusal` for a method whose mask changes, a pattern that
    matches no layer, or a rank above the smallest side of a weight.
    """
    if any(layer.adapter is not None for layer in layers):
        raise Refusal("the model has adapters already: give add_adapters all targets at once")
    if not (method.locked or method.calibrates):
        raise Refusal(
            f"recipe.adapter=lora trains under zeros that stay, and method={method.options.name} moves them: prune "
            "first, then give from=<that run> (method=held), or method=wanda or sparsegpt with recipe.epochs"
        )
    linear = [one for one in layers if isinstance(one.sites[0].module, nn.Linear) or is_conv1d(one.sites[0].module)]
    unknown = [one for one in targets if not any(fnmatch(layer.name, one) for layer in linear)]
    if unknown or not linear:
        names = ", ".join(layer.name for layer in linear[:4]) or "none"
        raise Refusal(
            f"recipe.adapter_targets={','.join(unknown) or '[]'} matches no pruned linear layer ({names}, ...): "
            "give recipe.adapter_targets=[<names or fnmatch patterns of layers>]"
        )
    chosen = [layer for layer in linear if not targets or any(fnmatch(layer.name, one) for one in targets)]
    smallest = min(min(layer.weight.shape) for layer in chosen)
    if rank > smallest:
        raise Refusal(f"recipe.adapter_rank={rank} is more than {smallest}, the smallest side of a layer: lower it")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{one}.") for one in trained))
    for layer in chosen:
        layer.adapter = Adapter(layer, rank, alpha, seed)
    return [layer.adapter for layer in chosen]


@torch.no_grad()
def merge(layers: Sequence[Layer]) -> None:
    """Adds every adapter to its stored weight and removes it; the caller applies the masks afterwards."""
    for layer in layers:
        if layer.adapter is not None:
            layer.weight.copy_(layer.adapter.added(layer.weight))
            layer.adapter = None


def state_of(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """A, B and alpha/r by layer name."""
    held = {layer.name: layer.adapter for layer in layers if layer.adapter is not None}
    return {name: {"a": one.a.detach(), "b": one.b.detach(), "scale": one.scale} for name, one in held.items()}


def check_state(layers: Sequence[Layer], state: dict[str, Any]) -> None:
    """Raises `Refusal` for a state of other adapters than the layers have."""
    own = {layer.name: layer.adapter for layer in layers if layer.adapter is not None}
    if own.keys() != state.keys():
        theirs, ours = (", ".join(sorted(names)[:4]) or "none" for names in (state, own))
        raise Refusal(
            f"the pruner's state has adapters at {len(state)} layers ({theirs}), this pruner at {len(own)} ({ours}): "
            "call add_adapters as before, then load_state_dict"
        )
    for name, one in own.items():
        shapes = [tuple(state[name][key].shape) for key in ("a", "b")]
        scale = state[name].get("scale", one.scale)  # states of before did not say it
        if shapes != [tuple(one.a.shape), tuple(one.b.shape)] or scale != one.scale:
            rank, alpha = shapes[0][0], scale * shapes[0][0]
            raise Refusal(
                f"the pruner's state has an adapter of rank {rank} and alpha {alpha:g} at {name}, this pruner one of "
                f"rank {len(one.a)} and alpha {one.scale * len(one.a):g}: give add_adapters the same"
            )


@torch.no_grad()
def load_state(layers: Sequence[Layer], state: dict[str, Any]) -> None:
    """Copies what `state_of` returned into the adapters; the optimizer keeps the same parameters.

    A state without adapters is that of a finished pruner, which has added them to the weights.
    """
    for layer in layers:
        if layer.adapter is not None and layer.name in state:
            layer.adapter.a.copy_(state[layer.name]["a"])
            layer.adapter.b.copy_(state[layer.name]["b"])
        else:
            layer.adapter = None
