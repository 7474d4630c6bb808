"""Finds the layers that a pattern and a method prune, and the reason why each other weight stays dense."""

from __future__ import annotations

from typing import Any

from torch import nn

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods.method import Method
from pdp.patterns.pattern import Pattern
from pdp.survey import nothing_to_prune


def gather(
    model: nn.Module, pattern: Pattern, method: Method, found: list[Layer], others: dict[str, str], example_input: Any
) -> tuple[list[Layer], dict[str, str]]:
    """The layers of `found` that are pruned, and by name why others are not; `others` were excluded before.

    Raises `Refusal` if nothing is left to prune.
    """
    if not found:
        raise Refusal(nothing_to_prune("the model", others))
    layers, dense = pattern.gather(model, list(found), example_input)
    refused = {layer.name: reason for layer in layers if (reason := method.refuses(layer))}
    layers = [layer for layer in layers if layer.name not in refused]
    taken = {(member.parameter, member.sites[0].index) for layer in layers for member in layer.members}
    missing = {
        layer.name: _lost(layer, pattern)
        for layer in found
        if (layer.parameter, layer.sites[0].index) not in taken
        and layer.name not in dense
        and layer.name not in refused
    }
    skipped = dense | refused | missing | others
    if not layers:
        raise Refusal(nothing_to_prune(f"with pattern {pattern.label} the model", skipped))
    return layers, skipped


def _lost(layer: Layer, pattern: Pattern) -> str:
    if isinstance(layer.sites[0].caller, nn.MultiheadAttention):
        return f"pattern {pattern.label} cannot follow nn.MultiheadAttention's projections"
    return f"pattern {pattern.label} does not reach it: nothing that it follows makes or reads its channels"
