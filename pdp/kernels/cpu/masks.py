"""PDP's effective weight on the CPU: `pdp.masks.soft.soft_prune`, a kernel for each direction."""

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

_LARGEST = torch.finfo(torch.float32).max / 4  # largest offset, which stays finite
Numbers = tuple[float, float]


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; keeps nothing for backward but the weight and two numbers.

    `cut` and `temperature` are single numbers; the weight must lie dense.
    """
    return differentiable(weight, _numbers(cut, temperature), [])


def effective_weights(
    weights: Sequence[Tensor], cuts: Sequence[Tensor], temperatures: Sequence[Tensor | float]
) -> Iterator[tuple[Tensor, Numbers, Tensor]]:
    """The values of `host_prune` for several weights at once: what `differentiable` needs of each to go on from."""
    numbers = [_numbers(cut, tau) for cut, tau in zip(cuts, temperatures, strict=True)]
    effective = [torch.empty_like(weight) for weight in weights]
    offsets, inverses = np.array(numbers, np.float32).T
    counts = np.array([weight.numel() for weight in weights], np.int64)
    places = [np.array([one.data_ptr() for one in ones], np.int64) for ones in (weights, effective)]
    in_parts(masking.write_all, *parting(int(counts.sum())), *places, counts, offsets, inverses)
    return zip(weights, numbers, effective, strict=True)


def differentiable(weight: Tensor, numbers: Numbers, ready: list[Tensor]) -> Tensor:
    """The effective weight of these numbers, the one that is `ready` if there is one."""
    return _HostPrune.apply(weight, numbers, ready)


def _numbers(cut: Tensor, temperature: Tensor | float) -> Numbers:
    """-t^2 / tau, t with its sign, and 1 / tau."""
    t, tau = cut.item(), float(temperature)
    # Of two arguments the first is returned where one is NaN.
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
        # A hook for saved tensors may return another layout, and gradients come in any.
        if weight.dtype != torch.float32 or not weight.is_cpu or not lies_dense(weight):
            weight = weight.to("cpu", torch.float32).contiguous()
        if gradient.dtype != torch.float32 or gradient.stride() != weight.stride() or type(gradient) is not Tensor:
            gradient = torch.empty_like(weight).copy_(gradient)
        slope = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), gradient.data_ptr(), slope.data_ptr())
        in_parts(masking.write_slope, *parting(count), *places, count, *ctx.numbers)  # type: ignore[attr-defined]
        return slope, None, None
