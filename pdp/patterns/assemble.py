"""Builds couplings from the results of a walk: the units, and every slice of every tensor that belongs to each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from pdp.layers import is_weighted
from pdp.patterns.attention import Attention
from pdp.patterns.coupling import Count, Coupling, Part, Vector, row_axis
from pdp.patterns.walk import Walk

OUTPUTS = "its channels are the model's outputs"
_MOST_CHANNELS = 1 << 25  # of all readers and norms, counted once for each coupling that they have channels of
_SLICED = ("weight", "bias", "running_mean", "running_var")


@dataclass
class _Group:
    """Layers that make channels ("makers") and share units with each other."""

    makers: list[int] = field(default_factory=list)
    unit_of: dict[int, int] = field(default_factory=dict)


def assemble(walk: Walk, model: nn.Module) -> list[Coupling]:
    """The couplings, in the order of the model's modules."""
    place = {name: index for index, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    atoms = walk.atoms
    _pin_shared(walk)
    _tie_biases(walk)
    classes = atoms.classes()
    _pin_ragged(walk, classes)
    reasons = atoms.reasons(classes)
    makers = sorted(
        (key[1] for key in atoms.blocks if key[0] == "rows" and _site(walk, key[1])[0] not in walk.apart),
        key=lambda identity: place[_site(walk, identity)[0]],
    )
    groups = _groups(walk, makers, classes)
    masked, kept = _chosen(walk, walk.masked), _chosen(walk, walk.read_kept)
    couplings = [_coupling(walk, group, classes, reasons) for group in groups]
    owner, number = np.full(atoms.count, -1), np.full(atoms.count, -1)  # by class: its coupling, and its unit there
    for index, group in enumerate(groups):
        owner[list(group.unit_of)] = index
        number[list(group.unit_of)] = list(group.unit_of.values())
    room, full = _MOST_CHANNELS, ""
    for (kind, identity), (first, size) in atoms.blocks.items():
        if kind == "rows":
            continue
        own = classes[first : first + size]
        of = owner[own]
        found = [index for index in np.unique(of[of >= 0]).tolist() if couplings[index].refused is None]
        room -= size * len(found)
        if room < 0 and not full:
            full = f"more concatenated channels meet in {_site(walk, identity)[0]} and before than can be followed"
        for index in found:
            units = np.where(of == index, number[own], -1)
            if room < 0:
                couplings[index].refused = full
            elif kind == "columns":
                _add_reader(couplings[index], walk, identity, units, kept[first : first + size])
            else:
                _add_vector(couplings[index], walk, identity, units, masked[first : first + size])
    for name, _, key, nth, counted in walk.counts:
        of = np.where(counted >= 0, owner[classes[counted]], -1)
        for index in np.unique(of[of >= 0]).tolist():
            units = np.where(of == index, number[classes[counted]], -1)
            couplings[index].counts.append(Count(name, key, nth, units.tolist()))
    couplings += _uncoupled(walk, model)
    for one in couplings:
        for parts in (one.inputs, one.norms):
            parts.sort(key=lambda part: place[part.name])
        if not one.inputs:
            one.refused = one.refused or OUTPUTS
    return couplings


def _site(walk: Walk, identity: int) -> Any:
    """(name, module, key) of the layer whose weight this is, or else of whatever module holds it."""
    owners = walk.owners[identity]
    for axes in ((0, 1), (1, 0)):
        site = walk.weight_site(identity, *axes)
        if site is not None:
            return site
    return owners[0]


def unread(walk: Walk, model: nn.Module) -> list[str]:
    """The names of layers whose weights no forward has read."""
    return [
        name
        for name, module in model.named_modules()
        if is_weighted(module)
        and (weight := module._parameters.get("weight")) is not None
        and name not in walk.apart
        and ("rows", id(weight)) not in walk.atoms.blocks
        and id(weight) not in walk.shared
    ]


def _uncoupled(walk: Walk, model: nn.Module) -> list[Coupling]:
    """Layers whose weight the forward does not use as a layer's weight, refused with the reason."""
    found = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or not is_weighted(module) or name in walk.apart or ("rows", id(weight)) in walk.atoms.blocks:
            continue
        reason = walk.shared.get(id(weight), "no forward of the example input reads its weight")
        rows = weight.shape[row_axis(module)]
        found.append(Coupling(rows, [Part(name, module, list(range(rows)))], refused=reason))
    return found


def _pin_shared(walk: Walk) -> None:
    """Pins parameters that are read as a whole, and weights whose elements are also followed one by one."""
    for key, (first, size) in list(walk.atoms.blocks.items()):
        kind, identity = key
        reason = walk.shared.get(identity)
        if kind != "elements" and ("elements", identity) in walk.atoms.blocks:
            reason = reason or f"{walk.owners[identity][0][0]}'s weight is read in another way as well"
        if reason:
            walk.atoms.pin(np.arange(first, first + size), reason)


def _tie_biases(walk: Walk) -> None:
    """A bias that the forward adds apart from its layer's product goes with the rows all the same."""
    for (kind, identity), (first, size) in list(walk.atoms.blocks.items()):
        bias = _site(walk, identity)[1]._parameters.get("bias") if kind == "rows" else None
        if bias is not None and ("elements", id(bias)) in walk.atoms.blocks:
            own, many = walk.atoms.blocks["elements", id(bias)]
            if many == size:
                walk.atoms.tie(np.arange(first, first + size), np.arange(own, own + size))


def _pin_ragged(walk: Walk, classes: np.ndarray) -> None:
    """Pins parameters of several dimensions whose units do not lie along one dimension: they cannot be sliced."""
    for key, (first, size) in walk.atoms.blocks.items():
        kind, identity = key
        own = classes[first : first + size]
        if kind == "elements" and len(walk.held[identity].shape) > 1 and _axis(own, walk.held[identity].shape) is None:
            reason = f"{walk.owners[identity][0][0] or 'the model'}.{walk.owners[identity][0][2]} cannot be cut"
            walk.atoms.pin(np.arange(first, first + size), reason)


def _axis(values: np.ndarray, shape: Any) -> int | None:
    """The only dimension along which the values differ; None if there is not exactly one."""
    table = values.reshape(shape)
    along = [axis for axis in range(table.ndim) if (table != table.take([0], axis)).any()]
    return along[0] if len(along) == 1 else None


def _groups(walk: Walk, makers: list[int], classes: np.ndarray) -> list[_Group]:
    """Groups makers that have a class of atoms in common, in order, and numbers the classes of a group as its units."""
    leader: dict[int, int] = {}

    def root(one: int) -> int:
        while leader[one] != one:
            one = leader[one]
        return one

    seen: dict[int, int] = {}
    rows: dict[int, list[int]] = {}
    for index, identity in enumerate(makers):
        leader[index] = index
        first, size = walk.atoms.blocks["rows", identity]
        rows[index] = classes[first : first + size].tolist()
        for one in set(rows[index]):
            if one in seen:
                low, high = sorted((root(seen[one]), root(index)))
                leader[high] = low
            seen[one] = index
    found: dict[int, _Group] = defaultdict(_Group)
    for index, identity in enumerate(makers):
        group = found[root(index)]
        group.makers.append(identity)
        for one in rows[index]:
            group.unit_of.setdefault(one, len(group.unit_of))
    return list(found.values())


def _coupling(walk: Walk, group: _Group, classes: np.ndarray, reasons: dict[int, tuple[int, str]]) -> Coupling:
    coupling = Coupling(len(group.unit_of))
    for identity in group.makers:
        name, module, _ = _site(walk, identity)
        first, size = walk.atoms.blocks["rows", identity]
        units = [group.unit_of[one] for one in classes[first : first + size].tolist()]
        coupling.outputs.append(Part(name, module, units))
    held = [reasons[one] for one in group.unit_of if one in reasons]
    if held:
        coupling.refused = min(held)[1]
    return coupling


def _chosen(walk: Walk, groups: list[np.ndarray]) -> np.ndarray:
    """Which atoms are in any of these groups."""
    chosen = np.zeros(walk.atoms.count, dtype=bool)
    for one in groups:
        chosen[one] = True
    return chosen


def _add_reader(coupling: Coupling, walk: Walk, identity: int, units: np.ndarray, kept: np.ndarray) -> None:
    name, module, _ = _site(walk, identity)
    groups = getattr(module, "groups", 1)
    if groups > 1 and len(units) == 1:
        return  # a depthwise convolution: its rows say the same
    masked = bool((kept & (units >= 0)).any())
    coupling.inputs.append(Part(name, module, np.tile(units, groups).tolist(), masked))


def _add_vector(coupling: Coupling, walk: Walk, identity: int, units: np.ndarray, masked: np.ndarray) -> None:
    shape = walk.held[identity].shape
    axis = 0 if len(shape) == 1 else _axis(units, shape)
    if axis is None:
        coupling.refused = coupling.refused or "a parameter that it needs cannot be cut"
        return
    own = np.moveaxis(units.reshape(shape), axis, 0).reshape(shape[axis], -1)[:, 0]
    zeroed = bool((masked & (units >= 0)).any())
    for name, module, key in walk.owners[identity]:
        if key == "bias" and any(part.module is module for part in coupling.outputs):
            continue  # it goes with its layer's rows
        if hasattr(module, "num_features") and key in _SLICED:
            if not any(part.module is module for part in coupling.norms):
                coupling.norms.append(Part(name, module, own.tolist()))
        else:
            coupling.vectors.append(Vector(name, module, key, axis, own.tolist(), zeroed))


def head_coupling(model: nn.Module, attention: Attention) -> Coupling:
    """The coupling of the heads of a known type of attention."""
    heads = [index // attention.size for index in range(attention.heads * attention.size)]
    one = Coupling(attention.heads, heads=attention.counter)
    for maker in attention.makers:
        one.outputs.append(Part(maker, model.get_submodule(maker), heads * attention.blocks))
    one.inputs.append(Part(attention.reader, model.get_submodule(attention.reader), heads))
    return one
