"""Fake quantization: numbers rounded to a scale times integers, with a gradient through the rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdp.masks.transforms import takes_plain

ACTIVATION_LEVELS = 255  # of unsigned 8 bits, 0 to 255


def weight_bound(bits: int) -> int:
    """The largest integer of a symmetric weight: 127 for 8 bits, 7 for 4 bits. The lowest one is its negative."""
    return 2 ** (bits - 1) - 1


def weight_scale(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The scale for each slice along `axis`: max |w| / 127 (8 bits) or / 7 (4 bits); 1 for a slice of zeros.

    The result has the shape of `weight` with all dimensions but `axis` of size 1; float32, or the dtype of `weight` if
    that is wider.
    """
    others = [one for one in range(weight.dim()) if one != axis]
    largest = widened(weight.detach()).abs().amax(others, keepdim=True)
    scale = largest / weight_bound(bits)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def integers(values: Tensor, scale: Tensor, zero_point: Tensor | int, lowest: int, highest: int) -> Tensor:
    """clamp(round(x / s) + z), as floats; halves are rounded to the even number, as in ONNX."""
    return (torch.round(widened(values) / scale) + zero_point).clamp(lowest, highest)


def fake_quantize(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    lowest: int,
    highest: int,
    gradient_scale: Tensor | float = 1.0,
) -> Tensor:
    """(clamp(round(x / s) + z, lowest, highest) - z) * s, in the dtype of `values`; zero stays exactly zero.

    The gradient for `values` is the identity where the integer was not clamped and zero elsewhere (straight-through
    with clipping). The one for `scale` is LSQ's (arXiv 1902.08153, equation 3), times `gradient_scale`: round(x / s) -
    x / s where the integer was not clamped, and the bound elsewhere.
    """
    if takes_plain():
        return _composed(values, scale, zero_point, lowest, highest, gradient_scale)
    return _FakeQuantize.apply(values, scale, zero_point, lowest, highest, gradient_scale)


def widened(values: Tensor) -> Tensor:
    """The values as float32; float64 stays float64."""
    return values if values.dtype == torch.float64 else values.float()


def summed_to(values: Tensor, shape: torch.Size) -> Tensor:
    """The values summed over every dimension that has size 1 in `shape` or is missing there."""
    while values.dim() > len(shape):
        values = values.sum(0)
    wide = [place for place, size in enumerate(shape) if size == 1 and values.shape[place] != 1]
    return values.sum(wide, keepdim=True) if wide else values


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        scale: Tensor,
        zero_point: Tensor | int,
        lowest: int,
        highest: int,
        gradient_scale: Tensor | float,
    ) -> Tensor:
        exact = torch.round(widened(values) / scale) + zero_point
        found = exact.clamp(lowest, highest)
        ctx.learned = scale.requires_grad
        ctx.gradient_scale = gradient_scale
        inside = exact == found
        if ctx.learned:
            ctx.save_for_backward(inside, found - zero_point, values, scale)
        else:
            ctx.save_for_backward(inside)
        return ((found - zero_point) * scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        inside, *others = ctx.saved_tensors  # asked once: activation checkpointing refuses to make them twice
        passed = gradient * inside
        if not ctx.learned:
            return passed, None, None, None, None, None
        steps, values, scale = others
        slope = steps - torch.where(inside, widened(values) / scale, torch.zeros_like(steps))
        of_scale = summed_to(widened(gradient) * slope, scale.shape) * ctx.gradient_scale
        return passed, of_scale.to(scale.dtype), None, None, None, None


def _composed(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor | int,
    lowest: int,
    highest: int,
    gradient_scale: Tensor | float,
) -> Tensor:
    """The same in plain operations, for torch.func's transforms and torch.compile; to second derivatives a constant."""
    exact, fixed = widened(values), scale.detach()
    steps = exact.detach() / fixed
    rounded = torch.round(steps)
    inside = (rounded + zero_point >= lowest) & (rounded + zero_point <= highest)
    found = (rounded + zero_point).clamp(lowest, highest) - zero_point
    # Both terms are exactly zero, and have the derivatives for the values and for the scale. A factor that is infinite
    # must not make the second one not a number.
    moving = torch.where(inside, exact - exact.detach(), torch.zeros_like(steps))
    slope = found - torch.where(inside, steps, torch.zeros_like(steps))
    largest = torch.finfo(scale.dtype).max
    factor = gradient_scale.detach().clamp(max=largest) if isinstance(gradient_scale, Tensor) else gradient_scale
    return (found * fixed + moving + slope * ((scale - fixed) * factor)).to(values.dtype)
