"""PDP's effective weight on a GPU, equal to `pdp.masks.soft.soft_prune`; one kernel each for forward and backward."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pdp.kernels.gpu import masking
from pdp.kernels.gpu.launching import launch
from pdp.masks.kept import keep, kept
from pdp.masks.soft import lies_readable, plain_prune
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph

_BLOCK = 1024


def device_prune(
    weight: Tensor,
    cuts: Tensor,
    temperature: Tensor | float,
    dtype: torch.dtype,
    members: int = 1,
    inner: int = 1,
) -> Tensor:
    """The effective weight m(w) * w, rounded once to `dtype`; saves only the weight and the cuts for backward.

    `cuts` is one number, or one per group of `members` weights that are `inner` elements apart in memory, in the memory
    order of the weight. The weight must fill its memory without gaps.
    """
    return _DevicePrune.apply(weight, cuts, temperature, dtype, members, inner)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether a kernel may read `one`, and its elements lie in memory in the same order as those of `other`."""
    mine, others = one.stride(), other.stride()
    return lies_readable(one) and (
        mine == others
        or all(own == other for size, own, other in zip(one.shape, mine, others, strict=True) if size > 1)
    )


def spread_cuts(cuts: Tensor, weight: Tensor, members: int, inner: int) -> Tensor:
    """The cut of each weight, shaped like `weight`, from one cut per group in memory order."""
    if members == 1:
        return cuts
    in_memory = cuts.as_strided((cuts.numel() // inner, 1, inner), (inner, inner, 1)).repeat(1, members, 1)
    return in_memory.reshape(-1).as_strided(weight.shape, weight.stride())


class _DevicePrune(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, cuts: Tensor, temperature, dtype, members: int, inner: int) -> Tensor:
        ctx.how = (temperature, members, inner)  # type: ignore[attr-defined]
        keep(ctx, weight, cuts)
        effective = torch.empty_like(weight, dtype=dtype)
        _launch(masking.write_effective, (weight, effective), cuts, *ctx.how)  # type: ignore[attr-defined]
        return effective

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, cuts = kept(ctx)
        if wants_a_graph():
            temperature, members, inner = ctx.how  # type: ignore[attr-defined]
            of_each = partial(plain_prune, cut=spread_cuts(cuts, weight, members, inner), temperature=temperature)
            return *gradients_with_a_graph(of_each, [weight], [gradient]), *(None,) * 5
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
    # Where all tensors are aligned to 16 bytes, the compiled kernel depends only on dtypes and sizes.
    known = None if misplaced else (size, inner, *[one.dtype for one in pointers])
    launch(
        kernel, -(-size // _BLOCK), *pointers, 1.0 if held else float(temperature), size, inner,
        known=known, MEMBERS=members, FLAT=inner == 1, HELD=held, BLOCK=_BLOCK,
    )  # fmt: skip
