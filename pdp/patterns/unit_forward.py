"""One autograd node per layer in a forward of the whole model: it masks all of the layer's tensors at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdp.kernels import cpu as host_kernels
from pdp.kernels.gpu import unit_kernels
from pdp.layers import Layer, Member, compute_dtype
from pdp.masks.units import mask_units, steepness
from pdp.patterns.unit_table import UnitTable
from pdp.patterns.weight_forward import MOST, bundles, has_hooks, several_processes

Found = tuple[Tensor, int | None, int]  # a tensor, its version (None in inference mode) and its address


class Forward:
    """A forward of the whole model in which the layers of `tables` are masked at their temperatures.

    Everything is computed when the first weight is read, so that autocast is already active if it is used.
    """

    def __init__(self, tables: Sequence[tuple[UnitTable, Tensor | float]]):
        self.tables = tables
        # By whether gradients are recorded, then by member: stored tensor, effective tensor, state of the layer's
        # tensors.
        self.made: dict[bool, dict[int, tuple[Tensor, Tensor, list[Found]]]] = {}

    def effective(self, member: Member, weight: Tensor) -> Tensor | None:
        """The effective weight for `weight`; None if this forward does not provide it."""
        recording = torch.is_grad_enabled()
        if recording not in self.made:
            self.made[recording] = {key: one for table in self.tables for key, one in _masked(*table)}
        stored, effective, found = self.made[recording].get(id(member), (None, weight, []))
        # A copy of the model has other weights, and autocast may have begun or ended since.
        if stored is not weight:
            return None
        if effective.dtype != weight.dtype and effective.dtype != compute_dtype(member.sites[0], weight):
            return None
        for tensor, version, address in found:
            # A model may change its weights during its forward, for example to limit their norm.
            if tensor.data_ptr() != address or (version is not None and tensor._version != version):
                return None
        return effective


def _kernels(layer: Layer, mask: Tensor, tensors: Sequence[Tensor], units: Sequence, dtypes: Sequence) -> Any:
    """The kernels that compute `mask_units` for a layer's tensors; None if its plain operations do."""
    if not all(member.whole for member in layer.members if member.weighs):  # they ask for a unit of every slice
        return None
    found = unit_kernels(mask, tensors, units)
    return host_kernels.unit_kernels(mask, tensors, units, dtypes) if found is None else found


def _masked(table: UnitTable, temperature: Tensor | float) -> list[tuple[int, tuple[Tensor, Tensor, list[Found]]]]:
    # A copy, because the masks in the state change in place at the next step.
    masks = torch.cat([layer.state["mask"] for layer in table.layers])
    made: list[tuple[int, tuple[Tensor, Tensor, list[Found]]]] = []
    steeps = table.split(table.steepness(masks, temperature))
    seen = [
        _Masked(layer, [member.tensor for member in layer.members], mask, steep)
        for layer, mask, steep in zip(table.layers, table.split(masks), steeps, strict=True)
    ]
    effective = _together(seen)
    for place, one in enumerate(seen):
        found: list[Found] = [
            (tensor, None if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in one.tensors
        ]
        rows = effective[place] if place in effective else one.alone()
        for member, stored, own in zip(one.layer.members, one.tensors, rows, strict=True):
            made.append((id(member), (stored, member.rows(own), found)))
    return made


class _Masked(NamedTuple):
    """A layer with its stored tensors, its mask and its steepness."""

    layer: Layer
    tensors: list[nn.Parameter]
    mask: Tensor
    steep: Tensor

    def alone(self) -> tuple[Tensor, ...]:
        """The effective tensors, units along dimension 0, by a node of the layer's own."""
        pairs = list(zip(self.layer.members, self.tensors, strict=True))
        rows = [member.rows(tensor) for member, tensor in pairs]
        units = [units_of(member, self.mask) for member, _ in pairs]
        dtypes = [compute_dtype(member.sites[0], tensor) for member, tensor in pairs]
        kernels = _kernels(self.layer, self.mask, rows, units, dtypes)
        return mask_units(self.mask, self.steep, rows, units, self.weighs, dtypes, kernels)

    @property
    def weighs(self) -> list[bool]:
        """Which of its tensors count as prunable."""
        return [member.weighs for member in self.layer.members]

    @property
    def in_order(self) -> bool:
        """Whether slice i along dimension 0 of each of its tensors belongs to unit i."""
        return self.mask.numel() > 0 and all(one.in_order and not one.axis for one in self.layer.members)


def _together(layers: Sequence[_Masked]) -> dict[int, Sequence[Tensor]]:
    """The effective tensors of the layers that the CPU's kernels compute together, by place."""
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or several_processes():
        return {}
    places = [place for place, layer in enumerate(layers) if layer.in_order]
    tensors = [tensor for place in places for tensor in layers[place].tensors]
    if not places or not host_kernels.usable(layers[places[0]].mask) or host_kernels.found_units() is None:
        return {}
    if not host_kernels.usable(*tensors):
        places = [place for place in places if host_kernels.usable(*layers[place].tensors)]
    # A gradient's hook must not run where none arrives, and a node calls the hooks of all its tensors.
    hooked = [tensor for tensor in tensors if has_hooks(tensor)]
    if hooked or len(set(map(id, tensors))) < len(tensors):
        own = Counter(map(id, [*tensors, *hooked]))
        places = [place for place in places if all(own[id(tensor)] == 1 for tensor in layers[place].tensors)]
    if len(places) < 2:
        return {}
    kernels = host_kernels.found_units()
    found: dict[int, Sequence[Tensor]] = {}
    sizes = [sum(tensor.numel() for tensor in layers[place].tensors) for place in places]
    for bundle in bundles(sizes, MOST):
        chosen = [layers[places[number]] for number in bundle]
        units = [kernels.Units(one.mask, one.steep, one.tensors, one.weighs) for one in chosen]
        made = kernels.joined(units, kernels.mask_layers(units))
        for number, one in zip(bundle, chosen, strict=True):
            count = len(one.tensors)
            found[places[number]], made = made[:count], made[count:]
    return found


def masked_alone(layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float, scale: float) -> Tensor:
    """The effective weight from a separate node, which also gives gradients to the layer's other weights."""
    mask = layer.state["mask"].clone()
    factor = 2 * scale / temperature
    steep = steepness(mask, factor if isinstance(factor, Tensor) else mask.new_full((), factor))
    others = [one for one in layer.members if one.weighs and one.tensor is not weight]
    # A parameter that is not the layer's own belongs to a copy of the model, whose gradients are not for the original.
    copied = weight.is_leaf and not layer.sharded and weight is not member.tensor
    theirs = [one.rows(one.tensor.detach() if copied else one.tensor) for one in others]
    tensors = [*theirs, member.rows(weight)]
    units = [units_of(one, mask) for one in (*others, member)]
    dtypes = [*(None for _ in others), compute_dtype(member.sites[0], weight)]
    (rows,) = mask_units(
        mask,
        steep,
        tensors,
        units,
        [*(True for _ in others), member.weighs and weight is member.tensor],
        dtypes,
        _kernels(layer, mask, tensors, units, dtypes),
    )
    return member.rows(rows)


def units_of(member: Member, values: Tensor) -> Tensor | None:
    """The unit of each slice, on the device of `values` (the model may have moved); None if slice i is unit i."""
    if member.in_order:
        return None
    assert member.units is not None
    if member.units.device != values.device:
        member.units = member.units.to(values.device)
    return member.units
