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
from pdp.kernels.cpu.team import address, run
from pdp.masks.kept import keep, kept
from pdp.masks.soft import NOTHING, SATURATED, lies_dense, lies_readable
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph

_LARGEST = torch.finfo(torch.float32).max / 4  # bound of the offset -t^2 / tau that keeps it finite
Numbers = tuple[float, float]
Many = np.ndarray  # `Numbers` of several weights, one row for each kind of number; (2, weights), float64


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; saves only the weight and two numbers for backward.

    `cut` and `temperature` are single numbers; the weight must fill its memory without gaps.
    """
    return _HostPrune.apply(weight, _numbers(cut, temperature))


def effective_weights(
    weights: Sequence[Tensor], cuts: Sequence[Tensor], temperatures: Sequence[Tensor | float]
) -> tuple[Many, list[Tensor]]:
    """The values of `host_prune` for several weights at once, after the numbers that `joined` needs of each."""
    numbers = _numbers_of([cut.item() for cut in cuts], temperatures)
    effective = [torch.empty_like(weight) for weight in weights]
    _launch(masking.write_all, numbers, weights, effective)
    return numbers, effective


def joined(weights: Sequence[Tensor], numbers: Many, effective: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `effective_weights` has computed, differentiable in the weights in a single node of autograd."""
    return _HostJoint.apply(numbers, effective, *weights)


def _launch(kernel: Any, numbers: Many, *tensors: Sequence[Tensor]) -> None:
    counts = [one.numel() for one in tensors[0]]
    places = [one.data_ptr() for ones in tensors for one in ones]
    numbers = np.ascontiguousarray(numbers)  # a choice of columns does not lie in order
    run(kernel, sum(counts), (len(counts), *places, *counts), address(numbers))


def _numbers(cut: Tensor, temperature: Tensor | float) -> Numbers:
    """The two numbers that a kernel needs: the offset -t |t| / tau (t with its sign) and 1 / tau."""
    t, tau = cut.item(), float(temperature)
    # The order matters for NaN: min and max return their first argument if a comparison with NaN is false.
    return max(min(t * abs(t) / -tau, _LARGEST), -_LARGEST), 1 / tau


def _numbers_of(cuts: Sequence[float], temperatures: Sequence[Tensor | float]) -> Many:
    """`_numbers` of every cut."""
    t, tau = np.array(cuts), np.array([float(one) for one in temperatures])
    found = np.empty((2, len(cuts)))
    # Python's min and max keep NaN, and so do these.
    np.maximum(np.minimum(t * np.abs(t) / -tau, _LARGEST), -_LARGEST, out=found[0])
    np.divide(1, tau, out=found[1])
    return found


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
        run(masking.write_effective, count, (*places, count), numbers)
        return effective

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors or kept(ctx)  # type: ignore[attr-defined]
        if wants_a_graph():
            plain = partial(_plain, numbers=ctx.numbers)  # type: ignore[attr-defined]
            return *gradients_with_a_graph(plain, [weight], [gradient]), None  # type: ignore[return-value]
        weight = readable(weight)
        gradient = alike(gradient, weight)
        slope = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), gradient.data_ptr(), slope.data_ptr())
        run(masking.write_slope, count, (*places, count), ctx.numbers)  # type: ignore[attr-defined]
        return slope, None


class _HostJoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Many, effective: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.numbers = numbers
        keep(ctx, *weights)
        ctx.set_materialize_grads(False)
        return tuple(effective)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [place for place, gradient in enumerate(gradients) if gradient is not None]
        weights = list(map(readable, kept(ctx, given)))
        if wants_a_graph():
            everything = partial(_plain_ones, numbers=ctx.numbers)
            return None, None, *gradients_with_a_graph(everything, ctx.kept, gradients)
        slopes = [torch.empty_like(weight) for weight in weights]
        upstream = [alike(gradients[place], weight) for place, weight in zip(given, weights, strict=True)]  # type: ignore[arg-type]
        if len(given) == len(gradients):
            _launch(masking.write_slopes, ctx.numbers, weights, upstream, slopes)
            return None, None, *slopes
        if given:
            _launch(masking.write_slopes, ctx.numbers[:, given], weights, upstream, slopes)
        found = dict(zip(given, slopes, strict=True))
        return None, None, *(found.get(place) for place in range(len(gradients)))


def _plain_ones(*weights: Tensor, numbers: Many) -> tuple[Tensor, ...]:
    return tuple(_plain(weight, tuple(own)) for weight, own in zip(weights, numbers.T.tolist(), strict=True))


def readable(weight: Tensor) -> Tensor:
    """The weight as the kernels read it, even if it was given other `data` since the forward, as by model.double()."""
    if weight.dtype is not torch.float32 or not weight.is_cpu or not lies_dense(weight):
        return weight.detach().to("cpu", torch.float32).contiguous()
    return weight


def alike(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient, which can have any layout, as the kernels read it: float32, in the weight's layout."""
    plain = type(gradient) is Tensor and gradient.dtype is torch.float32 and lies_readable(gradient)
    return gradient if plain and gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
