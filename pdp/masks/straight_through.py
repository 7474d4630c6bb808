"""A masked weight whose gradient reaches every stored weight, pruned or kept (straight-through estimator)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdp.masks.transforms import in_transform


def straight_through(weight: Tensor, keep: Tensor) -> Tensor:
    """Forward: W * B with the mask B = `keep`. Backward: dL/dW = dL/d(W * B). `keep` is bool and broadcasts to
    `weight`.
    """
    if in_transform():
        return weight + (weight * keep - weight).detach()
    return _StraightThrough.apply(weight, keep)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor) -> Tensor:
        return weight * keep

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
