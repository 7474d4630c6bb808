"""The difference between two models' outputs, of floats or in steps of integers, and the tolerance for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # relative to the largest output: float32 sums in another order
STEPS = 255  # of the outputs' range: what an integer of 8 bits can say of them


def difference(one: nn.Module, other: nn.Module, *inputs: Tensor) -> float:
    """The largest difference of two models' outputs in evaluation mode, relative to the largest output."""
    modes = [(module, module.training) for model in (one, other) for module in model.modules()]
    try:
        with torch.no_grad():
            first, second = one.eval()(*inputs), other.eval()(*inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-30))


def steps_off(found: Tensor, expected: Tensor) -> float:
    """The largest difference of outputs in steps: the expected ones' range over 255."""
    step = (expected.max() - expected.min()).clamp(min=1e-30) / STEPS
    return float((found - expected).abs().max() / step)
