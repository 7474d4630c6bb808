"""PDP's effective weight and its gradient as one compiled kernel each: the formulas of `pdp.mask` in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pdp.mask import FARTHEST, NOTHING, SATURATED, as_cut, exact, lies_dense, offset_of


def fused_prune(weight: Tensor, cut: Tensor | float, temperature: Tensor | float) -> Tensor:
    """`pdp.mask.soft_prune` to rounding, compiled at the first call; the cut and the temperature are single numbers.

    Keeps nothing for backward but the weight and the cut. Inside a step that is compiled anyway it is a part of that.
    """
    return _FusedPrune.apply(weight, as_cut(cut, weight), temperature)


def _effective(weight: Tensor, offset: Tensor, inverse: Tensor) -> Tensor:
    mask = torch.sigmoid(offset + weight * weight * inverse)
    return torch.where(mask > NOTHING, mask, 0.0) * weight


def _slope(weight: Tensor, offset: Tensor, inverse: Tensor, upstream: Tensor) -> Tensor:
    z = (offset + weight * weight * inverse).clamp(-SATURATED, SATURATED)
    mask = torch.sigmoid(z)
    # 2 w^2 / tau = 2 z + 2 t^2 / tau
    return upstream * (mask + 2 * (z - offset.clamp(min=FARTHEST)) * mask * (1 - mask))


@cache
def _compiled(function: Callable[..., Tensor]) -> Any:
    # One kernel for weights of every size.
    return torch.compile(function, dynamic=True, fullgraph=True)


def _call(function: Callable[..., Tensor], weight: Tensor, offset: Tensor, inverse: Tensor, *like: Tensor) -> Tensor:
    """The compiled function of the weight and of what has its shape, number by number; the result lies likewise."""
    if torch.compiler.is_compiling():
        return function(weight, offset, inverse, *like)
    if not lies_dense(weight):
        weight = weight.contiguous()
    like = tuple(one if one.stride() == weight.stride() else torch.empty_like(weight).copy_(one) for one in like)
    found = _compiled(function)(_flat(weight), offset, inverse, *map(_flat, like))
    return found.as_strided(weight.shape, weight.stride())


def _flat(values: Tensor) -> Tensor:
    # Not a view: a kernel for a view is compiled again for every rank of what it is a view of.
    return values.new_empty(0).set_(values.untyped_storage(), values.storage_offset(), (values.numel(),), (1,))


class _FusedPrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
        ctx.temperature = temperature  # type: ignore[attr-defined]
        ctx.save_for_backward(weight, cut)
        return _call(_effective, exact(weight), *_numbers(cut, temperature, weight)).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, cut = ctx.saved_tensors  # type: ignore[attr-defined]
        numbers = _numbers(cut, ctx.temperature, weight)  # type: ignore[attr-defined]
        slope = _call(_slope, exact(weight), *numbers, gradient.to(exact(weight).dtype))
        return slope.to(weight.dtype), None, None


def _numbers(cut: Tensor, temperature: Tensor | float, weight: Tensor) -> tuple[Tensor, Tensor]:
    """-t^2 / tau and 1 / tau as tensors: as plain numbers each new one would be compiled again."""
    kind = exact(weight).dtype
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=kind, device=weight.device)
    return offset_of(cut, temperature, kind), temperature.to(kind).reciprocal()
