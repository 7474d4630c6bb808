"""PDP's effective weight on the CPU, equal to `pdp.masks.soft.soft_prune`, with one kernel each for forward and
backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pdp.kernels.cpu import masking
from pdp.kernels.cpu.layout import alike, readable
from pdp.kernels.cpu.team import address, run
from pdp.masks.kept import keep, kept
from pdp.masks.soft import NOTHING, SATURATED
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph

_LARGEST = torch.finfo(torch.float32).max / 4  # bound of the offset -t^2 / tau that keeps it finite
Numbers = tuple[float, float]


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; saves only the weight and two numbers for backward.

    `cut` and `temperature` are single numbers; the weight must fill its memory without gaps.
    """
    return _HostPrune.apply(weight, _numbers(cut, temperature))


class SingleCuts:
    """The masks of weights with one cut each, for `pdp.kernels.cpu.joint`."""

    cuts: list[Tensor] = []  # numbers are enough

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers  # `Numbers` of each weight, one row for each kind; (2, weights), float64

    @classmethod
    def of(cls, cuts: Sequence[Tensor], temperatures: Sequence[Tensor | float]) -> SingleCuts:
        """The masks with these cuts and temperatures, one number each."""
        t, tau = np.array([cut.item() for cut in cuts]), np.array([float(one) for one in temperatures])
        numbers = np.empty((2, len(cuts)))
        # As in `_numbers`: Python's min and max keep NaN there, and these do.
        np.maximum(np.minimum(t * np.abs(t) / -tau, _LARGEST), -_LARGEST, out=numbers[0])
        np.divide(1, tau, out=numbers[1])
        return cls(numbers)

    def chosen(self, places: Sequence[int]) -> SingleCuts:
        """The masks of the weights at these places."""
        return SingleCuts(np.ascontiguousarray(self.numbers[:, places]))

    def readable(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as the kernels read them."""
        return list(map(readable, weights))

    def write_effective(self, weights: Sequence[Tensor], effective: Sequence[Tensor]) -> None:
        """Writes m(w) * w of each weight."""
        self._launch(masking.write_effective, weights, effective)

    def write_slopes(self, weights: Sequence[Tensor], upstream: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Writes the gradient of each weight, given that of its effective weight."""
        self._launch(masking.write_slope, weights, upstream, slopes)

    def plain(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The effective weights in plain operations."""
        return tuple(_plain(weight, tuple(own)) for weight, own in zip(weights, self.numbers.T.tolist(), strict=True))

    def _launch(self, kernel: Any, *tensors: Sequence[Tensor]) -> None:
        counts = [one.numel() for one in tensors[0]]
        places = [one.data_ptr() for ones in tensors for one in ones]
        total = sum(counts)
        run(kernel, total, (len(counts), total, *places, *counts), address(self.numbers))


def _numbers(cut: Tensor, temperature: Tensor | float) -> Numbers:
    """The two numbers that a kernel needs: the offset -t |t| / tau (t with its sign) and 1 / tau."""
    t, tau = cut.item(), float(temperature)
    # The order matters for NaN: min and max return their first argument if a comparison with NaN is false.
    return max(min(t * abs(t) / -tau, _LARGEST), -_LARGEST), 1 / tau


def _plain(weight: Tensor, numbers: Numbers) -> Tensor:
    offset, inverse = numbers
    mask = (offset + weight * weight * inverse).clamp(-SATURATED, SATURATED).sigmoid()
    return torch.where(mask > NOTHING, mask, torch.zeros((), device=mask.device)) * weight


class _HostPrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, numbers: Numbers) -> Tensor:
        ctx.numbers = numbers  # type: ignore[attr-defined]
        if weight.is_leaf:
            keep(ctx, weight)
        else:  # it is freed with the graph
            ctx.save_for_backward(weight)
        effective = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), effective.data_ptr())
        run(masking.write_effective, count, (1, count, *places, count), numbers)
        return effective

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors or kept(ctx)  # type: ignore[attr-defined]
        numbers: Numbers = ctx.numbers  # type: ignore[attr-defined]
        if wants_a_graph():
            plain = partial(_plain, numbers=numbers)
            return *gradients_with_a_graph(plain, [weight], [gradient]), None  # type: ignore[return-value]
        weight = readable(weight)
        gradient = alike(gradient, weight)
        slope = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), gradient.data_ptr(), slope.data_ptr())
        run(masking.write_slope, count, (1, count, *places, count), numbers)
        return slope, None
