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
from pdp.masks.transforms import in_transform
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
    seen = [
        _Masked(layer, [member.tensor for member in layer.members], mask, steep)
        for layer, mask, steep in zip(
            table.layers, table.split(masks), table.split(table.steepness(masks, temperature)), strict=True
        )
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
        members = self.layer.members
        rows = [member.rows(tensor) for member, tensor in zip(members, self.tensors, strict=True)]
        units = [units_of(member, self.mask) for member in members]
        kernels = _kernels(self.layer, self.mask, rows, units, self.dtypes)
        weighs = [member.weighs for member in members]
        return mask_units(self.mask, self.steep, rows, units, weighs, self.dtypes, kernels)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The types in which its modules compute."""
        pairs = zip(self.layer.members, self.tensors, strict=True)
        return [compute_dtype(member.sites[0], tensor) for member, tensor in pairs]

    @property
    def shares(self) -> bool:
        """Whether its tensors may share a node with those of other layers, and the CPU's kernels take them."""
        if not self.mask.numel() or not all(one.in_order and not one.axis for one in self.layer.members):
            return False
        # A gradient's hook must not run where none arrives, and a node calls the hooks of all its tensors.
        if any(map(has_hooks, self.tensors)) or any(one is not torch.float32 for one in self.dtypes):
            return False
        return host_kernels.usable(self.mask, *self.tensors)


def _together(layers: Sequence[_Masked]) -> dict[int, Sequence[Tensor]]:
    """The effective tensors of the layers that can be computed together, by place."""
    if not torch.is_grad_enabled() or in_transform() or several_processes():
        return {}
    places = [place for place, layer in enumerate(layers) if layer.shares]
    own = Counter(id(tensor) for place in places for tensor in layers[place].tensors)
    places = [place for place in places if all(own[id(tensor)] == 1 for tensor in layers[place].tensors)]
    if len(places) < 2:
        return {}
    kernels: Any = host_kernels.found().units  # type: ignore[union-attr]
    found: dict[int, Sequence[Tensor]] = {}
    sizes = [sum(tensor.numel() for tensor in layers[place].tensors) for place in places]
    for bundle in bundles(sizes, MOST):
        chosen = [places[number] for number in bundle]
        units = [
            kernels.Units(
                layers[place].mask,
                layers[place].steep,
                layers[place].tensors,
                [member.weighs for member in layers[place].layer.members],
            )
            for place in chosen
        ]
        made = kernels.joined(units, kernels.mask_layers(units))
        for place in chosen:
            count = len(layers[place].tensors)
            found[place], made = made[:count], made[count:]
    return found


def masked_alone(layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float, scale: float) -> Tensor:
    """The effective weight from a separate node, which also gives gradients to the layer's other weights."""
    mask = layer.state["mask"].clone()
    factor = 2 * scale / temperature
    steep = steepness(mask, factor if isinstance(factor, Tensor) else mask.new_full((), factor))
    others = [one for one in layer.members if one.weighs and one.tensor is not weight]
    tensors = [*(one.rows(one.tensor) for one in others), member.rows(weight)]
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
