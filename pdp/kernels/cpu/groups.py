"""N:M on the CPU: the cuts of `pdp.patterns.nm` and PDP's effective weight under them, one kernel each.

A weight fills its memory without gaps. Its cuts, one for a group of `members` weights, lie in the memory order of the
weight; `inner` is the distance in memory between two members of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdp.kernels.cpu import grouping
from pdp.kernels.cpu.layout import alike, readable
from pdp.kernels.cpu.team import run
from pdp.masks.kept import keep, kept
from pdp.masks.soft import memory_order, plain_prune
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph


def full_cuts(weight: Tensor, along: int, members: int, free: int) -> Tensor:
    """The cuts of groups along dimension `along` that lose their `free` smallest weights: float32, inputs last.

    Equal bit for bit to midway between the last pruned and the next weight's magnitude.
    """
    cuts = new_cuts(weight, along, members)
    write_full_cuts([weight], [cuts], [weight.stride(along)], members, free)
    return cuts.movedim(along, -1)


def new_cuts(weight: Tensor, along: int, members: int) -> Tensor:
    """Room for the cuts of groups along dimension `along`: shaped like the weight but for it, in its memory order."""
    shape = list(weight.shape)
    shape[along] //= members
    return torch.empty(shape, dtype=torch.float32, device=weight.device, memory_format=memory_order(weight))


def write_full_cuts(
    weights: Sequence[Tensor], cuts: Sequence[Tensor], inner: Sequence[int], members: int, free: int
) -> None:
    """Writes the cuts of several weights, each in its weight's memory order."""
    total = sum(weight.numel() for weight in weights)
    places = [one.data_ptr() for ones in (weights, cuts) for one in ones]
    blocks = [one.numel() // apart for one, apart in zip(cuts, inner, strict=True)]
    run(grouping.write_full_cuts, total, (len(weights), total, members, free, *places, *blocks, *inner))


def prune_groups(weight: Tensor, cuts: Tensor, temperature: Tensor | float, members: int, inner: int) -> Tensor:
    """The effective weight m(w) * w, float32, in the layout of `weight`."""
    return _HostGroups.apply(weight, GroupCuts([Grouped(weight, cuts, inner, float(temperature))], members))


class Grouped(NamedTuple):
    """A weight, its cuts in the same memory order, `inner` and the temperature."""

    weight: Tensor
    cuts: Tensor
    inner: int
    temperature: float


class GroupCuts:
    """The masks of weights with a cut for each group, for `pdp.kernels.cpu.joint`."""

    def __init__(self, weights: Sequence[Grouped], members: int):
        self.members = members
        self.cuts = [one.cuts for one in weights]
        self.temperatures = [one.temperature for one in weights]
        self.inner = [one.inner for one in weights]
        self.laid = [(one.weight.size(), one.weight.stride()) for one in weights]

    def chosen(self, places: Sequence[int]) -> GroupCuts:
        """The masks of the weights at these places."""
        some = GroupCuts([], self.members)
        some.cuts = [self.cuts[place] for place in places]
        some.temperatures = [self.temperatures[place] for place in places]
        some.inner, some.laid = [self.inner[place] for place in places], [self.laid[place] for place in places]
        return some

    def write_effective(self, weights: Sequence[Tensor], effective: Sequence[Tensor]) -> None:
        """Writes m(w) * w of each weight."""
        self._launch(grouping.write_effective, weights, effective)

    def write_slopes(self, weights: Sequence[Tensor], upstream: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Writes the gradient of each weight, given that of its effective weight."""
        self._launch(grouping.write_slope, weights, upstream, slopes)

    def plain(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The effective weights in plain operations."""
        each = zip(weights, self.cuts, self.laid, self.inner, self.temperatures, strict=True)
        return tuple(
            plain_prune(weight, spread_cuts(cuts, *laid, self.members, inner), temperature)
            for weight, cuts, laid, inner, temperature in each
        )

    def _launch(self, kernel: Any, *tensors: Sequence[Tensor]) -> None:
        total = sum(one.numel() for one in tensors[0])
        places = [one.data_ptr() for ones in (*tensors, self.cuts) for one in ones]
        blocks = [one.numel() // apart for one, apart in zip(self.cuts, self.inner, strict=True)]
        many = (len(blocks), total, self.members)
        run(kernel, total, (*many, *places, *blocks, *self.inner), self.temperatures)


class _HostGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, masks: GroupCuts) -> Tensor:
        ctx.masks = masks
        keep(ctx, weight, *masks.cuts)
        effective = torch.empty_like(weight)
        masks.write_effective([weight], [effective])
        return effective

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, _ = kept(ctx)
        if wants_a_graph():
            return *gradients_with_a_graph(ctx.masks.plain, [weight], [gradient]), None
        stride = ctx.masks.laid[0][1]
        own = readable(weight, stride)
        slope = torch.empty_like(own)
        ctx.masks.write_slopes([own], [alike(gradient, own, stride)], [slope])
        return slope, None


def spread_cuts(cuts: Tensor, size: Sequence[int], stride: Sequence[int], members: int, inner: int) -> Tensor:
    """Each group's cut for each of its weights, for a weight of this size and these strides."""
    flat = cuts.as_strided((cuts.numel() // inner, 1, inner), (inner, inner, 1)).repeat(1, members, 1)
    return flat.as_strided(size, stride)
