"""A masked weight whose gradient reaches every weight, pruned or kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def straight_through(weight: Tensor, keep: Tensor) -> Tensor:
    """W * B forward, the identity backward: dL/dW = dL/d(W * B). `keep` is bool and broadcasts to `weight`."""
    return _StraightThrough.apply(weight, keep)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor) -> Tensor:
        return weight * keep

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
