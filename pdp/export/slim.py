"""Makes a channel-pruned model physically smaller: the same function without the channels that are zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pdp.errors import Refusal
from pdp.export.compare import TOLERANCE
from pdp.export.slim_config import fit_configuration
from pdp.patterns.coupling import Coupling
from pdp.patterns.find import call, find_couplings, quiet
from pdp.patterns.proof import copied
from pdp.patterns.shrink import leaving_some, remove, sizes_of, zero_units


@dataclass
class Slimmed:
    """The smaller model, how many channels each coupling lost, and the sizes that differ from the dense model's."""

    model: nn.Module
    removed: dict[str, tuple[int, int]]  # by coupling: (units removed, units in total)
    modules: dict[str, dict[str, Any]]
    opens: bool = False  # of a Hugging Face model: whether its configuration says these sizes, for `from_pretrained`


@torch.no_grad()
def slim(model: nn.Module, example_input: Any) -> Slimmed:
    """A copy of `model` without the coupled channels whose filters, biases and norms are all exactly zero.

    `example_input` is a tensor, a tuple of arguments or a dict of keyword arguments. Raises `Refusal` if no channel is
    zero, if the model cannot be analysed, or if the smaller model's outputs differ on noise of the example's shape. If
    all blocks of a Hugging Face model have lost the same number, its configuration says the new sizes, so that its own
    `save_pretrained` and `from_pretrained` work.
    """
    smaller = copied(model)
    gone: list[tuple[Coupling, set[int]]] = []
    couplings = find_couplings(smaller, example_input)
    before = sizes_of(smaller, couplings)
    for coupling in couplings:
        if coupling.refused is None:
            units = leaving_some(coupling, zero_units(coupling))
            gone += [(coupling, units)] if units else []
    if not gone:
        raise Refusal("no channel of this model is zero, so nothing can be removed: format=slim is for prune=channel")
    remove(smaller, gone)
    removed = {one.name: (len(units), one.units) for one, units in gone}
    opens = fit_configuration(smaller, removed, {one.name for one, _ in gone if one.heads is not None})
    off = _apart(model, smaller, tree_map(_noise, example_input))
    if off is None or not off <= TOLERANCE:
        words = "its outputs have another shape" if off is None else f"{off:.2g} of the largest output apart"
        raise Refusal(f"the smaller model would be another function ({words}), so nothing is removed")
    after = sizes_of(smaller, couplings)
    return Slimmed(smaller, removed, {name: values for name, values in after.items() if values != before[name]}, opens)


def _noise(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def _apart(model: nn.Module, smaller: nn.Module, inputs: Any) -> float | None:
    """The largest difference of the outputs relative to the largest one, in evaluation mode; None if shapes differ."""
    outputs = []
    for one in (model, smaller):
        with quiet(one):
            outputs.append([value.double() for value in tree_leaves(call(one, inputs)) if isinstance(value, Tensor)])
    first, second = outputs
    if [one.shape for one in first] != [one.shape for one in second]:
        return None
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one.numel()]
    return max(
        (float((one - other).abs().max() / one.abs().max().clamp(min=1e-30)) for one, other in pairs), default=0.0
    )
