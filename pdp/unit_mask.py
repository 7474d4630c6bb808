"""The soft mask of whole units, a function of all the weights that make a unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def unit_mask(
    mask: Tensor, temperature: Tensor | float, scale: Tensor | float, weights: Sequence[Tensor], units: Sequence[Tensor]
) -> Tensor:
    """`mask` itself, as a function of `weights`: m(s) = sigmoid((s^2 - t^2) / tau) with s^2 = scale * sum of squares.

    `mask` is m as computed from these very weights, `units` the unit of each slice of them along dimension 0.
    d m_u / d w = m (1 - m) / tau * 2 scale w. Reads no weight in the forward.
    """
    return _UnitMask.apply(mask, temperature, scale, list(units), *weights)


class _UnitMask(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        mask: Tensor,
        temperature: Tensor | float,
        scale: Tensor | float,
        units: list,
        *weights: Tensor,
    ):
        ctx.temperature, ctx.scale, ctx.units = temperature, scale, units  # type: ignore[attr-defined]
        # The live mask changes in place at the next step; its copy does not.
        copy = mask.clone()
        ctx.save_for_backward(copy, *weights)
        return copy

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor):
        mask, *weights = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = gradient * mask * (1 - mask) / ctx.temperature * ctx.scale * 2  # type: ignore[attr-defined]
        gradients = []
        for weight, units in zip(weights, ctx.units, strict=True):  # type: ignore[attr-defined]
            along = slope[units].reshape(-1, *[1] * (weight.dim() - 1))
            gradients.append((along * weight).to(weight.dtype))
        return None, None, None, None, *gradients
