"""PDP's effective weight on the CPU: `pdp.mask.soft_prune`, a kernel for each direction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pdp.host_kernels import masking
from pdp.host_kernels.threads import call, worth_spreading

_LARGEST = torch.finfo(torch.float32).max / 4  # of an offset, which stays finite


def host_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w in float32; keeps nothing for backward but the weight and two numbers.

    `cut` and `temperature` are single numbers; the weight must lie dense.
    """
    t, tau = cut.item(), float(temperature)
    # The numbers that stand first stay where one is NaN.
    offset = max(min(t * abs(t) / -tau, _LARGEST), -_LARGEST)
    return _HostPrune.apply(weight, offset, 1 / tau)


class _HostPrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, offset: float, inverse: float) -> Tensor:
        ctx.numbers = offset, inverse  # type: ignore[attr-defined]
        ctx.save_for_backward(weight)
        effective = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), effective.data_ptr())
        if worth_spreading(count):
            call(masking.spread_effective, *places, count, torch.get_num_threads(), offset, inverse)
        else:
            masking.write_effective(*places, 0, count, offset, inverse)
        return effective

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        if gradient.dtype != torch.float32 or gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
        slope = torch.empty_like(weight)
        count, places = weight.numel(), (weight.data_ptr(), gradient.data_ptr(), slope.data_ptr())
        if worth_spreading(count):
            call(masking.spread_slope, *places, count, torch.get_num_threads(), *ctx.numbers)  # type: ignore[attr-defined]
        else:
            masking.write_slope(*places, 0, count, *ctx.numbers)  # type: ignore[attr-defined]
        return slope, None, None
