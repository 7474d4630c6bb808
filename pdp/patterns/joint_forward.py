"""Masks several layers together on a GPU in a forward of the whole model, in bundles made at the first request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.kernels.gpu import usable
from pdp.kernels.gpu.joint import SLOTS, Joint, Part, joinable
from pdp.layers import Layer, Member
from pdp.patterns.weight_forward import has_hooks

_MOST = 1 << 25  # weights in a bundle, whose gradients all wait in memory for its last one


class Bundles:
    """The layers that are masked together, and their tables of addresses, from step to step."""

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
        # Keyed by the id of the weight; valid as long as these weights are the layers' own.
        own = Counter(id(layer.weight) for layer in layers)  # a weight with several masks is masked by each in turn
        pairs = [(id(self.layers[place].weight), one) for one in self.lists if len(one) > 1 for place in one]
        self.waiting = {weight: one for weight, one in pairs if own[weight] == 1}
        self._joints: dict[tuple[int, ...], tuple[list[Any], Joint]] = {}

    def joint(self, parts: Sequence[Part], members: int) -> Joint:
        """The joint masks of these weights, made anew if something has moved in memory or changed its size."""
        key = tuple(id(part.weight) for part in parts)
        places = [(*part.place, part.weight.numel()) for part in parts]
        held = self._joints.get(key)
        if held is None or held[0] != places or held[1].members != members:
            self._joints[key] = held = (places, Joint(parts, members))
        return held[1]


class JointForward:
    """A forward in which the layers of `bundles` are masked at these temperatures, one per layer or one for all.

    `part_of` returns a layer's part of a bundle, or None if it cannot take part; groups have `members` weights.
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
        """The effective weight for `weight`, handed out once; None if the layer must compute it by itself."""
        if id(weight) in self._waiting and torch.is_grad_enabled():
            self._make(self._waiting[id(weight)])
        stored, version, place, effective = self._made.pop(id(weight), (None, 0, 0, weight))
        # A model may change its weights during its forward, and autocast may have begun or ended since.
        if stored is not weight or weight._version != version or weight.data_ptr() != place:
            return None
        fits = effective.dtype == member.compute_dtype(weight) and weight.requires_grad
        return effective if fits else None

    def _make(self, bundle: list[int]) -> None:
        shared = isinstance(self.temperatures, (int, float))
        alike: dict[tuple, list[Part]] = {}
        for place in bundle:
            layer = self.bundles.layers[place]
            weight = layer.weight
            # Frozen weights need no gradient, and a node of several would call hooks where no gradient arrives.
            if self._waiting.pop(id(weight), None) is None or not weight.requires_grad or has_hooks(weight):
                continue
            if not usable(weight):
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
