"""PDP's effective weight on a GPU: `pdp.masks.soft.soft_prune`, a kernel for each direction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pdp.kernels.gpu import masking
from pdp.kernels.gpu.launching import launch
from pdp.masks.kept import keep, kept

_BLOCK = 1024


def device_prune(
    weight: Tensor,
    cuts: Tensor,
    temperature: Tensor | float,
    dtype: torch.dtype,
    members: int = 1,
    inner: int = 1,
) -> Tensor:
    """The effective weight m(w) * w, rounded once to `dtype`; keeps nothing for backward but weight and cuts.

    `cuts` is one number, or one for each group of `members` weights that lie `inner` numbers apart: as long as the
    weight's memory is, in its order. The weight must lie dense.
    """
    return _DevicePrune.apply(weight, cuts, temperature, dtype, members, inner)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a shape have their numbers in the same order in memory."""
    mine, others = one.stride(), other.stride()
    return mine == others or all(
        own == other for size, own, other in zip(one.shape, mine, others, strict=True) if size > 1
    )


class _DevicePrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, cuts: Tensor, temperature, dtype, members: int, inner: int) -> Tensor:
        ctx.how = (temperature, members, inner)  # type: ignore[attr-defined]
        keep(ctx, weight, cuts)
        effective = torch.empty_like(weight, dtype=dtype)
        _launch(masking.write_effective, (weight, effective), cuts, *ctx.how)  # type: ignore[attr-defined]
        return effective

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, cuts = kept(ctx)
        if not alike(gradient, weight):
            gradient = torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
        slope = torch.empty_like(weight)
        _launch(masking.write_slope, (weight, gradient, slope), cuts, *ctx.how)  # type: ignore[attr-defined]
        return slope, None, None, None, None, None


def _launch(kernel, tensors: tuple[Tensor, ...], cuts: Tensor, temperature: Tensor | float, members: int, inner: int):
    size = tensors[0].numel()
    held = isinstance(temperature, Tensor)
    pointers = (*tensors, cuts, temperature if isinstance(temperature, Tensor) else cuts)
    misplaced = 0
    for one in pointers:
        misplaced |= one.data_ptr() & 15
    # Where all begin at sixteen bytes, types and numbers are all there is to know.
    known = None if misplaced else (size, inner, *[one.dtype for one in pointers])
    launch(
        kernel, -(-size // _BLOCK), *pointers, 1.0 if held else float(temperature), size, inner,
        known=known, MEMBERS=members, FLAT=inner == 1, HELD=held, BLOCK=_BLOCK,
    )  # fmt: skip
