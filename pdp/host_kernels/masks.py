"""PDP's effective weight on the CPU: `pdp.mask.soft_prune`, a kernel for each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pdp.host_kernels import masking
from pdp.host_kernels.threads import call
from pdp.mask import offset_of

_ALONE = 1 << 15  # numbers up to which one thread is as fast as several


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; keeps nothing for backward but the weight and two numbers.

    `cut` and `temperature` are single numbers; the weight must lie dense.
    """
    return _HostPrune.apply(weight, cut, temperature)


class _HostPrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
        temperature = float(temperature)
        ctx.numbers = offset_of(cut, temperature, torch.float32).item(), 1 / temperature  # type: ignore[attr-defined]
        ctx.save_for_backward(weight)
        effective = torch.empty_like(weight)
        _write(masking.write_effective, masking.spread_effective, (weight, effective), *ctx.numbers)  # type: ignore[attr-defined]
        return effective

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        if gradient.dtype != torch.float32 or gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
        slope = torch.empty_like(weight)
        _write(masking.write_slope, masking.spread_slope, (weight, gradient, slope), *ctx.numbers)  # type: ignore[attr-defined]
        return slope, None, None


def _write(alone: Any, together: Any, tensors: tuple[Tensor, ...], offset: float, inverse: float) -> None:
    count = tensors[0].numel()
    places = [one.data_ptr() for one in tensors]
    threads = 1 if count <= _ALONE else torch.get_num_threads()
    if threads == 1:
        alone(*places, 0, count, offset, inverse)
    else:
        call(threads, together, *places, count, threads, offset, inverse)
