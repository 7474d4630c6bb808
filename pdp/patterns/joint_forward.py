"""Layers masked together on a GPU in one forward of the whole model: bundles, each made when first asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.kernels.gpu import usable
from pdp.kernels.gpu.joint import SLOTS, Joint, Part, joinable
from pdp.layers import Layer, Member

_MOST = 1 << 25  # weights of a bundle: until its last gradient has come, those of the others wait


class Bundles:
    """Which layers are masked together, and their tables, from step to step."""

    def __init__(self, layers: Sequence[Layer]):
        self.layers = list(layers)
        self.lists: list[list[int]] = [[]]
        numbers = 0
        for place, layer in enumerate(layers):
            size = layer.weight.numel()
            if self.lists[-1] and (len(self.lists[-1]) == SLOTS or numbers + size > _MOST):
                self.lists.append([])
                numbers = 0
            self.lists[-1].append(place)
            numbers += size
        # By weight; they are the layers' own as long as this is asked for at all.
        own = Counter(id(layer.weight) for layer in layers)  # one with several masks is masked by each in turn
        pairs = [(id(self.layers[place].weight), one) for one in self.lists if len(one) > 1 for place in one]
        self.waiting = {weight: one for weight, one in pairs if own[weight] == 1}
        self._joints: dict[tuple[int, ...], tuple[list[Any], Joint]] = {}

    def joint(self, parts: Sequence[Part], members: int) -> Joint:
        """The table of these weights, made anew where something has moved or grown."""
        key = tuple(id(part.weight) for part in parts)
        places = [(*part.place, part.weight.numel()) for part in parts]
        held = self._joints.get(key)
        if held is None or held[0] != places or held[1].members != members:
            self._joints[key] = held = (places, Joint(parts, members))
        return held[1]


class JointForward:
    """A forward in which the layers of `bundles` are masked at these temperatures, one for each or for all.

    `part_of` makes a layer's part of a bundle, None where it has none; groups are of `members` weights.
    """

    def __init__(
        self,
        bundles: Bundles,
        temperatures: Sequence[Tensor] | float,
        part_of: Callable[[Layer, Tensor, Tensor | None], Part | None],
        members: int,
    ):
        self.bundles, self.temperatures, self.part_of, self.members = bundles, temperatures, part_of, members
        self._waiting = dict(bundles.waiting)
        self._made: dict[int, tuple[Tensor, int, int, Tensor]] = {}

    def effective(self, member: Member, weight: Tensor) -> Tensor | None:
        """The effective counterpart of `weight`, once; None where its layer has to make it by itself."""
        if id(weight) in self._waiting and torch.is_grad_enabled():
            self._make(self._waiting[id(weight)])
        stored, version, place, effective = self._made.pop(id(weight), (None, 0, 0, weight))
        # A model may change its weights in its forward, and autocast may have begun or ended since.
        if stored is not weight or weight._version != version or weight.data_ptr() != place:
            return None
        return effective if effective.dtype == member.compute_dtype(weight) else None

    def _make(self, bundle: list[int]) -> None:
        shared = isinstance(self.temperatures, (int, float))
        alike: dict[tuple, list[Part]] = {}
        for place in bundle:
            layer = self.bundles.layers[place]
            weight = layer.weight
            # What is not trained has no gradient that anybody should compute.
            if self._waiting.pop(id(weight), None) is None or not weight.requires_grad or not usable(weight):
                continue
            part = self.part_of(layer, weight, None if shared else self.temperatures[place])  # type: ignore[index]
            if part is not None and joinable(part):
                kind = (weight.dtype, weight.device, layer.members[0].compute_dtype(weight), part.inner == 1)
                alike.setdefault(kind, []).append(part)
        temperature = float(self.temperatures) if shared else 1.0  # type: ignore[arg-type]
        for (_, _, dtype, _), parts in alike.items():
            if len(parts) > 1:
                joint = self.bundles.joint(parts, self.members)
                for part, one in zip(parts, joint.effective(parts, temperature, dtype), strict=True):
                    stored = part.weight
                    self._made[id(stored)] = (stored, stored._version, stored.data_ptr(), one)
