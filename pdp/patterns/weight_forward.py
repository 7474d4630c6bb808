"""Layers in one forward of the whole model: all of their effective weights are computed at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.kernels import cpu as host_kernels
from pdp.layers import Layer, Member
from pdp.masks.transforms import in_transform

_SMALL = 800_000  # mean weights per layer; above this, fetching effective weights again costs more than separate calls
MOST = 1 << 22  # weights in a bundle, whose gradients all wait in memory for its last one
MasksOf = Callable[[Sequence[Layer], Sequence[Tensor], Sequence[Tensor | float]], Any]
_Made = tuple[Tensor, bool, int, int]  # an effective weight; whether its weight was trained, its version, its address


class Forward:
    """A forward of the whole model in which `layers` are masked at these temperatures, one per layer or one for all.

    Layers of a bundle share one node of autograd, as for a small layer a node in each direction costs more than its
    mask. `weights` are the layers' own, and `masks_of` gives the masks for the kernels, or None if they have none.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        temperatures: Sequence[Tensor] | float,
        weights: Sequence[Tensor],
        masks_of: MasksOf,
    ):
        # By the weight's id, its bundle or what was made of it; without those that were handed out.
        self._left: dict[int, int | _Made] = {}
        # Without gradients an effective weight is freed after its layer; keeping all of them would need more memory.
        if len(layers) < 2 or not torch.is_grad_enabled() or not weights[0].is_cpu:
            return
        sizes = [weight.numel() for weight in weights]
        if sum(sizes) > _SMALL * len(weights):
            return
        if not host_kernels.usable(*weights):
            return
        taus: Any = temperatures if isinstance(temperatures, Sequence) else [temperatures] * len(weights)
        # A weight with several masks is masked by each in turn. A gradient's hook must not run where none arrives, and
        # a node of several weights calls the hooks of all of them.
        hooked = [one for one in weights if has_hooks(one)]
        if hooked or len(set(map(id, weights))) < len(weights):
            own = Counter(map(id, [*weights, *hooked]))
            chosen = [place for place, one in enumerate(weights) if own[id(one)] == 1]
            if len(chosen) < 2:
                return
            sizes = [sizes[place] for place in chosen]
            weights, layers = [weights[place] for place in chosen], [layers[place] for place in chosen]
            taus = [taus[place] for place in chosen]
        kernels: Any = host_kernels.found()
        self._masks = masks_of(layers, weights, taus)
        if self._masks is None:
            return
        self._weights = weights
        self._found = [(one._version, one.data_ptr()) for one in weights]
        self._kernels: Any = kernels
        self._effective: list[Any] = kernels.effective(weights, self._masks)  # None where it was handed on
        # Others may wait for gradients too: for them a layer that a step does not use must stay out of its graph.
        self._bundles = bundles(sizes, 1 if several_processes() else MOST)
        self._left = {id(weights[place]): number for number, ones in enumerate(self._bundles) for place in ones}

    def effective(self, member: Member, weight: Tensor) -> Tensor | None:
        """The effective weight for `weight`, handed out once; None if it must still be computed."""
        key = id(weight)
        made = self._left.get(key)
        if made is None or not torch.is_grad_enabled() or in_transform():
            return None
        if type(made) is int:
            self._make(made)
            made = self._left[key]
        del self._left[key]
        effective, trained, version, address = made  # type: ignore[misc]
        # A model may change its weights during its forward, freeze them or thaw them.
        same = weight.requires_grad is trained and weight._version == version and weight.data_ptr() == address
        return effective if same else None

    @property
    def takes_part(self) -> bool:
        """Whether some weights were computed together and are not handed out yet."""
        return bool(self._left)

    def _make(self, number: int) -> None:
        places = self._bundles[number]
        made: dict[int, Any] = {place: self._effective[place] for place in places}
        trained = [place for place in places if self._weights[place].requires_grad]  # frozen ones need no node
        if trained:
            masks = self._masks if len(trained) == len(self._weights) else self._masks.chosen(trained)
            own, values = [self._weights[place] for place in trained], [made[place] for place in trained]
            made |= zip(trained, self._kernels.joined(own, masks, values), strict=True)
        for place, one in made.items():
            self._effective[place] = None  # autograd frees it after its layer's backward
            self._left[id(self._weights[place])] = (one, one.requires_grad, *self._found[place])


def has_hooks(weight: Tensor) -> bool:
    """Whether something is to be called with the weight's gradient, or after it was added."""
    return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)


def bundles(sizes: Sequence[int], most: int) -> list[list[int]]:
    """The places of what shares a node, in order; at most `most` numbers in one, or a single place."""
    found: list[list[int]] = [[]]
    numbers = 0
    for place, size in enumerate(sizes):
        if found[-1] and numbers + size > most:
            found.append([])
            numbers = 0
        found[-1].append(place)
        numbers += size
    return found


def several_processes() -> bool:
    """Whether this process trains with others, which wait for its gradients."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1
