"""The difference between two models' outputs, of floats or in steps of integers, and the tolerance for it."""

from __future__ import annotations

import math

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


def steps_off(found: Tensor, expected: Tensor, share: float = 1.0) -> float:
    """The largest difference of outputs (..., classes) in steps: the expected ones' range over 255.

    With `share` below 1 only of so many rows, those that differ least.
    """
    step = (expected.max() - expected.min()).clamp(min=1e-30) / STEPS
    rows = (
        ((found - expected).abs() / step).flatten(0, -2).amax(-1)
        if found.dim() > 1
        else (found - expected).abs() / step
    )
    return float(rows.sort().values[max(1, math.ceil(share * len(rows))) - 1])
