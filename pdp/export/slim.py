"""A channel-pruned model made physically smaller: the same function without the channels that are zero."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pdp.errors import Refusal
from pdp.patterns.coupling import Coupling
from pdp.patterns.find import find_couplings
from pdp.patterns.shrink import remove, sizes_of, zero_units


@dataclass
class Slimmed:
    """The smaller model, how many channels each coupling lost, and every module's sizes that differ from the dense."""

    model: nn.Module
    removed: dict[str, tuple[int, int]]  # units gone and units in all
    modules: dict[str, dict[str, Any]]


@torch.no_grad()
def slim(model: nn.Module, example_input: Any) -> Slimmed:
    """A copy of `model` without the coupled channels whose filters, biases and norms are exactly zero.

    Raises `Refusal` where no channel is zero or the model cannot be followed.
    """
    model = copy.deepcopy(model)
    before = sizes_of(model)
    gone: list[tuple[Coupling, set[int]]] = []
    for coupling in find_couplings(model, example_input):
        if coupling.refused is None:
            # A layer cannot be without channels.
            units = set(sorted(zero_units(coupling))[: coupling.units - 1])
            gone += [(coupling, units)] if units else []
    remove(model, gone)
    removed = {one.name: (len(units), one.units) for one, units in gone}
    if not removed:
        raise Refusal("no channel of this model is zero, so nothing can be removed: format=slim is for prune=channel")
    after = sizes_of(model)
    return Slimmed(model, removed, {name: values for name, values in after.items() if values != before[name]})
