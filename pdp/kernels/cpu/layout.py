"""Weights and gradients as the kernels read them: float32, on the CPU, dense in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.masks.soft import lies_dense


def readable(weight: Tensor, stride: Sequence[int]) -> Tensor:
    """The weight as the kernels read it, in the layout that it had, even if it was given other `data` since.

    `stride` is that of a dense layout.
    """
    if weight.dtype is torch.float32 and weight.is_cpu and weight.stride() == stride:
        return weight
    return torch.empty_strided(weight.size(), stride, dtype=torch.float32, device="cpu").copy_(weight.detach())


def alike(gradient: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """The gradient, which can have any layout, as the kernels read it: float32, in the weight's layout."""
    plain = type(gradient) is Tensor and gradient.dtype is torch.float32 and gradient.stride() == stride
    # A kernel may read its memory if it has some, and no sign is still to be applied to it.
    if plain and not gradient._is_zerotensor() and not gradient.is_neg():
        return gradient
    return torch.empty_like(weight).copy_(gradient)


def dense_stride(weight: Tensor) -> tuple[int, ...]:
    """The weight's stride, or that of a contiguous copy where it has gaps."""
    return weight.stride() if lies_dense(weight) else torch.empty(weight.size(), device="meta").stride()
