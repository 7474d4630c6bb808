"""PDP's effective weight on the CPU, equal to `pdp.masks.soft.soft_prune`, with one kernel each for forward and
backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.cpu import masking
from pdp.kernels.cpu.layout import alike, readable
from pdp.kernels.cpu.team import address, run
from pdp.masks.kept import keep, kept
from pdp.masks.soft import NOTHING, SATURATED
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph

Numbers = tuple[float, float]  # the offset -t |t| / tau (t with its sign) and 1 / tau


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; saves only the weight and two numbers for backward.

    `cut` and `temperature` are single numbers; the weight must fill its memory without gaps.
    """
    return _HostPrune.apply(weight, SingleCuts([cut.detach().float()], [float(temperature)]))


class SingleCuts:
    """The masks of weights with one cut each, a float32 number, for `pdp.kernels.cpu.joint`."""

    cuts: list[Tensor] = []  # numbers are enough for backward

    def __init__(self, cuts: Sequence[Tensor], temperatures: Sequence[float]):
        self._found = list(cuts)
        self.temperatures = temperatures
        self.numbers = np.empty((2, len(cuts)))  # `Numbers` of each weight once its effective weight is written

    def chosen(self, places: Sequence[int]) -> SingleCuts:
        """The masks of the weights at these places."""
        some = SingleCuts([], [])
        some.numbers = np.ascontiguousarray(self.numbers[:, places])
        return some

    def write_effective(self, weights: Sequence[Tensor], effective: Sequence[Tensor]) -> None:
        """Writes m(w) * w of each weight."""
        counts = [one.numel() for one in weights]
        places = [one.data_ptr() for ones in (weights, effective) for one in ones]
        cuts = [cut.data_ptr() for cut in self._found]
        total = sum(counts)
        of_all = (len(counts), total, address(self.numbers))
        run(masking.write_effective, total, (*of_all, *places, *counts, *cuts), self.temperatures)

    def write_slopes(self, weights: Sequence[Tensor], upstream: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Writes the gradient of each weight, given that of its effective weight."""
        counts = [one.numel() for one in weights]
        places = [one.data_ptr() for ones in (weights, upstream, slopes) for one in ones]
        total = sum(counts)
        run(masking.write_slope, total, (len(counts), total, *places, *counts), address(self.numbers))

    def plain(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The effective weights in plain operations."""
        pairs = zip(weights, self.numbers.T.tolist(), strict=True)
        return tuple(_plain(weight, (offset, inverse)) for weight, (offset, inverse) in pairs)


def _plain(weight: Tensor, numbers: Numbers) -> Tensor:
    offset, inverse = numbers
    mask = (offset + weight * weight * inverse).clamp(-SATURATED, SATURATED).sigmoid()
    return torch.where(mask > NOTHING, mask, torch.zeros((), device=mask.device)) * weight


class _HostPrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, masks: SingleCuts) -> Tensor:
        ctx.masks, ctx.stride = masks, weight.stride()
        if weight.is_leaf:
            keep(ctx, weight)
        else:  # it is freed with the graph
            ctx.save_for_backward(weight)
        effective = torch.empty_like(weight)
        masks.write_effective([weight], [effective])
        return effective

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        (weight,) = ctx.saved_tensors or kept(ctx)
        if wants_a_graph():
            return gradients_with_a_graph(ctx.masks.plain, [weight], [gradient])[0], None
        weight = readable(weight, ctx.stride)
        slope = torch.empty_like(weight)
        ctx.masks.write_slopes([weight], [alike(gradient, weight, ctx.stride)], [slope])
        return slope, None
