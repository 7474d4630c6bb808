"""PDP's effective weight on the CPU, equal to `pdp.masks.soft.soft_prune`, with one kernel each for forward and
backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pdp.kernels.cpu import masking
from pdp.kernels.cpu.parting import parting
from pdp.masks.soft import NOTHING, SATURATED, lies_dense
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph
from pdp.threads import in_parts

_LARGEST = torch.finfo(torch.float32).max / 4  # bound of the offset -t^2 / tau that keeps it finite
Numbers = tuple[float, float]


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; saves only the weight and two numbers for backward.

    `cut` and `temperature` are single numbers; the weight must fill its memory without gaps.
    """
    return differentiable(weight, _numbers(cut, temperature), [])


def effective_weights(
    weights: Sequence[Tensor], cuts: Sequence[Tensor], temperatures: Sequence[Tensor | float]
) -> Iterator[tuple[Tensor, Numbers, Tensor]]:
    """Computes the values of `host_prune` for several weights at once; yields each weight with what `differentiable`
    needs.
    """
    numbers = [_numbers(cut, tau) for cut, tau in zip(cuts, temperatures, strict=True)]
    effective = [torch.empty_like(weight) for weight in weights]
    offsets, inverses = np.array(numbers, np.float32).T
    counts = np.array([weight.numel() for weight in weights], np.int64)
    places = [np.array([one.data_ptr() for one in ones], np.int64) for ones in (weights, effective)]
    in_parts(masking.write_all, *parting(int(counts.sum())), *places, counts, offsets, inverses)
    return zip(weights, numbers, effective, strict=True)


def differentiable(weight: Tensor, numbers: Numbers, ready: list[Tensor]) -> Tensor:
    """The differentiable effective weight; takes the values from `ready` if they were computed before."""
    return _HostPrune.apply(weight, numbers, ready)


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
    def forward(ctx: FunctionCtx, weight: Tensor, numbers: Numbers, ready: list[Tensor]) -> Tensor:
        ctx.numbers = numbers  # type: ignore[attr-defined]
        ctx.save_for_backward(weight)
        if ready:
            return ready.pop()
        effective = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), effective.data_ptr())
        in_parts(masking.write_effective, *parting(count), *places, count, *numbers)
        return effective

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        if wants_a_graph():
            plain = partial(_plain, numbers=ctx.numbers)  # type: ignore[attr-defined]
            return *gradients_with_a_graph(plain, [weight], [gradient]), None, None  # type: ignore[return-value]
        # A hook on saved tensors may return another layout, and incoming gradients can have any layout.
        if weight.dtype != torch.float32 or not weight.is_cpu or not lies_dense(weight):
            weight = weight.to("cpu", torch.float32).contiguous()
        if gradient.dtype != torch.float32 or gradient.stride() != weight.stride() or type(gradient) is not Tensor:
            gradient = torch.empty_like(weight).copy_(gradient)
        slope = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), gradient.data_ptr(), slope.data_ptr())
        in_parts(masking.write_slope, *parting(count), *places, count, *ctx.numbers)  # type: ignore[attr-defined]
        return slope, None, None
