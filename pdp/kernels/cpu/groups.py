"""N:M on the CPU: the cuts of `pdp.patterns.nm` and PDP's effective weight under them, one kernel each.

A weight fills its memory without gaps. Its cuts, one for a group of `members` weights, lie in the memory order of the
weight; `inner` is the distance in memory between two members of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pdp.kernels.cpu import grouping
from pdp.kernels.cpu.masks import alike, readable
from pdp.kernels.cpu.team import run
from pdp.masks.kept import keep, kept
from pdp.masks.soft import memory_order, plain_prune
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph


def full_cuts(weight: Tensor, along: int, members: int, free: int) -> Tensor:
    """The cuts of groups along dimension `along` that lose their `free` smallest weights: float32, inputs last.

    Equal bit for bit to midway between the last pruned and the next weight's magnitude.
    """
    shape = list(weight.shape)
    shape[along] //= members
    cuts = torch.empty(shape, dtype=torch.float32, device=weight.device, memory_format=memory_order(weight))
    places = (weight.data_ptr(), cuts.data_ptr())
    run(grouping.write_full_cuts, weight.numel(), (*places, cuts.numel(), weight.stride(along), members, free))
    return cuts.movedim(along, -1)


def prune_groups(weight: Tensor, cuts: Tensor, temperature: Tensor | float, members: int, inner: int) -> Tensor:
    """The effective weight m(w) * w, float32, in the layout of `weight`."""
    return _HostGroups.apply(weight, cuts, float(temperature), members, inner)


class _HostGroups(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, cuts: Tensor, temperature: float, members: int, inner: int) -> Tensor:
        ctx.temperature, ctx.members, ctx.inner = temperature, members, inner
        ctx.size, ctx.stride = weight.size(), weight.stride()
        keep(ctx, weight, cuts)
        effective = torch.empty_like(weight)
        _launch(grouping.write_effective, ctx, cuts, weight, effective)
        return effective

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, cuts = kept(ctx)
        if wants_a_graph():
            spread = spread_cuts(cuts, ctx.size, ctx.stride, ctx.members, ctx.inner)
            plain = partial(plain_prune, cut=spread, temperature=ctx.temperature)
            return *gradients_with_a_graph(plain, [weight], [gradient]), None, None, None, None
        own = readable(weight)
        if own.stride() != ctx.stride:  # its data were replaced since
            own = torch.empty_strided(ctx.size, ctx.stride).copy_(own.detach())
        slope = torch.empty_like(own)
        _launch(grouping.write_slope, ctx, cuts, own, alike(gradient, own), slope)
        return slope, None, None, None, None


def _launch(kernel: Any, ctx: Any, cuts: Tensor, *tensors: Tensor) -> None:
    blocks = cuts.numel() // ctx.inner
    places = [one.data_ptr() for one in (*tensors, cuts)]
    run(kernel, tensors[0].numel(), (*places, blocks, ctx.inner, ctx.members), (ctx.temperature,))


def spread_cuts(cuts: Tensor, size: Sequence[int], stride: Sequence[int], members: int, inner: int) -> Tensor:
    """Each group's cut for each of its weights, for a weight of this size and these strides."""
    flat = cuts.as_strided((cuts.numel() // inner, 1, inner), (inner, inner, 1)).repeat(1, members, 1)
    return flat.as_strided(size, stride)
