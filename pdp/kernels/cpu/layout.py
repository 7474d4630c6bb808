"""Weights and gradients as the kernels read them: float32, on the CPU, dense in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from pdp.masks.soft import lies_dense, lies_readable


def readable(weight: Tensor) -> Tensor:
    """The weight as the kernels read it, even if it was given other `data` since the forward, as by model.double()."""
    if weight.dtype is not torch.float32 or not weight.is_cpu or not lies_dense(weight):
        return weight.detach().to("cpu", torch.float32).contiguous()
    return weight


def alike(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient, which can have any layout, as the kernels read it: float32, in the weight's layout."""
    plain = type(gradient) is Tensor and gradient.dtype is torch.float32 and lies_readable(gradient)
    return gradient if plain and gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)
