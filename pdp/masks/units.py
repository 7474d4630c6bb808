"""The soft mask of whole units on all tensors of a layer, and its gradient with respect to the weights that make it.

The plain operations here define it; a caller may hand over kernels that do the same in fewer launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pdp.masks.kept import keep, kept
from pdp.masks.soft import exact
from pdp.masks.transforms import gradients_with_a_graph, in_transform, wants_a_graph

_FLAT = 1e-7  # m (1 - m) below which a mask does not move


def steepness(mask: Tensor, factor: Tensor) -> Tensor:
    """m (1 - m) * factor, which broadcasts against `mask`; with factor = 2 scale / tau, d m_u / d w = steepness_u w."""
    return torch.ops.aten.sigmoid_backward(factor.expand_as(mask), mask)


def mask_units(
    mask: Tensor,
    steep: Tensor,
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    weighs: Sequence[bool],
    dtypes: Sequence[torch.dtype | None],
    kernels: Any = None,
) -> tuple[Tensor, ...]:
    """m_u * tensor for each of `tensors` that `dtypes` names a type for, in that type; differentiable in all of them.

    `mask` is m(s) = sigmoid((s^2 - t^2) / tau) with s^2 = scale * the sum of squares of the unit's weights, as computed
    from the tensors that weigh; neither it nor `steep`, its `steepness`, may change before backward. `units` are those
    of a tensor's slices along dimension 0, None where slice i is unit i; a slice of no unit has the number behind the
    last and stays as it is. `kernels` is what `pdp.kernels.gpu.unit_kernels` found for these tensors. Raises
    `RuntimeError` in backward where a tensor has been changed in place since.
    """
    if in_transform():
        return _plain(mask, steep, tensors, units, weighs, dtypes)
    if not torch.is_grad_enabled():
        return _masked(mask, tensors, units, dtypes, kernels)
    return _MaskUnits.apply(mask, steep, list(units), list(weighs), list(dtypes), kernels, *tensors)


def _plain(
    mask: Tensor,
    steep: Tensor,
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    weighs: Sequence[bool],
    dtypes: Sequence[torch.dtype | None],
) -> tuple[Tensor, ...]:
    """`mask_units` in plain operations, which differentiate any number of times in any mode.

    The mask is moved by what the squares of its weights move: as a number it stays what it was given as.
    """
    squares = torch.zeros_like(mask)
    for tensor, own, weigh in zip(tensors, units, weighs, strict=True):
        if weigh:
            sums = _row_sums(exact(tensor) ** 2).to(mask.dtype)
            squares = squares + (
                sums if own is None else with_rest(torch.zeros_like(mask)).index_add(0, own, sums)[:-1]
            )
    slope = mask * (1 - mask)
    some = slope > _FLAT
    # d m / d s^2 = m (1 - m) factor / 2: a logit that moves by as much.
    factor = torch.where(some, steep / slope.clamp(min=_FLAT), torch.zeros_like(mask)).detach()
    logit = torch.logit(mask.clamp(_FLAT, 1 - _FLAT)).detach()
    moving = torch.sigmoid(logit + (squares - squares.detach()) * factor * 0.5)
    live = mask.detach() + (moving - moving.detach())
    return tuple(
        (exact(tensor) * along(live, own, tensor)).to(dtype)
        for tensor, own, dtype in zip(tensors, units, dtypes, strict=True)
        if dtype is not None
    )


def along(values: Tensor, units: Tensor | None, tensor: Tensor, rest: float = 1.0) -> Tensor:
    """Numbers over units, made to broadcast against `tensor`, whose slices along dimension 0 belong to `units`.

    `rest` is the number of slices of the unit behind the last, which is none.
    """
    of_slices = values if units is None else with_rest(values, rest)[units]
    return of_slices.reshape(-1, *[1] * (tensor.dim() - 1))


def with_rest(values: Tensor, rest: float = 1.0) -> Tensor:
    """Numbers over units and, behind them, the one of slices that belong to none."""
    return torch.cat([values, values.new_full((1,), rest)])


def _gathered(mask: Tensor, units: Tensor, sums: Tensor) -> Tensor:
    """Sums of slices added up by unit; those of no unit are dropped."""
    return with_rest(torch.zeros_like(mask)).index_add(0, units, sums)[:-1]


def _plain_of(mask: Tensor, steep: Tensor, units: list, weighs: list, dtypes: list, *tensors: Tensor):
    return _plain(mask, steep, tensors, units, weighs, dtypes)


def _masked(
    mask: Tensor, tensors: Sequence[Tensor], units: Sequence, dtypes: Sequence, kernels: Any
) -> tuple[Tensor, ...]:
    if kernels:
        return tuple(kernels.masked(mask, tensors, dtypes))
    wanted = [place for place, dtype in enumerate(dtypes) if dtype is not None]
    vectors = [place for place in wanted if units[place] is None and _plain_vector(tensors[place], dtypes[place])]
    made = dict(zip(vectors, _multiplied([tensors[place] for place in vectors], mask), strict=True))
    for place in wanted:
        if place not in made:
            tensor = tensors[place]
            made[place] = _scaled(tensor, along(mask, units[place], tensor), dtypes[place])
    return tuple(made[place] for place in wanted)


class _MaskUnits(torch.autograd.Function):
    """One node for a whole layer: autograd would add up full-size gradients for each tensor that the mask scales."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, steep: Tensor, units: list, weighs: list, dtypes: list, kernels: Any, *tensors):
        ctx.units, ctx.weighs, ctx.dtypes = units, weighs, dtypes
        if torch.compiler.is_compiling():
            ctx.save_for_backward(mask, steep, *tensors)
        else:
            keep(ctx, mask, steep, *tensors)
            ctx.set_materialize_grads(False)
        ctx.kernels = kernels
        return _masked(mask, tensors, units, dtypes, kernels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None):
        units, weighs = ctx.units, ctx.weighs
        mask, steep, *tensors = kept(ctx) if hasattr(ctx, "kept") else ctx.saved_tensors
        if wants_a_graph():
            plain = partial(_plain_of, mask, steep, units, weighs, ctx.dtypes)
            return None, None, None, None, None, None, *gradients_with_a_graph(plain, tensors, gradients)
        wanted = [place for place, dtype in enumerate(ctx.dtypes) if dtype is not None]
        upstream = {place: one for place, one in zip(wanted, gradients, strict=True) if one is not None}
        if ctx.kernels:
            found = ctx.kernels.gradients(mask, steep, tensors, weighs, upstream)
            return None, None, None, None, None, None, *(found.get(place) for place in range(len(tensors)))
        vectors = [
            place
            for place, one in upstream.items()
            if units[place] is None and _plain_vector(tensors[place], one.dtype)
        ]
        at_vectors = [upstream[place] for place in vectors]
        sums = list(_multiplied(at_vectors, [tensors[place] for place in vectors]))
        found = dict(zip(vectors, _multiplied(at_vectors, mask), strict=True))
        for place, gradient in upstream.items():
            if place not in found:
                tensor = tensors[place]
                # In the weight's memory layout, as this buffer becomes the weight's gradient.
                found[place] = exact(tensor) * gradient
                rows = _row_sums(found[place]).to(mask.dtype)
                if units[place] is not None:
                    rows = with_rest(torch.zeros_like(mask), 0.0).index_add_(0, units[place], rows)[:-1]
                sums.append(rows)
        slope = (torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]) * steep
        for place, tensor in enumerate(tensors):
            if place in upstream and place not in vectors:
                torch.mul(upstream[place], along(mask, units[place], tensor), out=found[place])
            if weighs[place]:
                slopes = along(slope, units[place], tensor, 0.0).to(exact(tensor).dtype)
                if place in found:
                    found[place].addcmul_(exact(tensor), slopes)
                else:
                    found[place] = exact(tensor) * slopes
        return (
            None,
            None,
            None,
            None,
            None,
            None,
            *(_in_type_of(found.get(place), one) for place, one in enumerate(tensors)),
        )


def _plain_vector(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dim() == 1 and tensor.dtype == dtype == torch.float32


def _multiplied(tensors: list[Tensor], by: Tensor | list[Tensor]) -> Sequence[Tensor]:
    """Several vectors of one length, each times its partner in a list or all times one vector, in one operation."""
    if not tensors:
        return ()
    return torch._foreach_mul(tensors, by if isinstance(by, list) else [by] * len(tensors))


def _scaled(tensor: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """The product with float32 numbers, rounded once, in `dtype`."""
    if dtype == (torch.float64 if tensor.dtype == torch.float64 else by.dtype):
        return tensor * by
    return torch.mul(tensor, by, out=torch.empty_like(tensor, dtype=dtype))


def _row_sums(values: Tensor) -> Tensor:
    return values.sum(dim=tuple(range(1, values.dim()))) if values.dim() > 1 else values


def _in_type_of(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(tensor.dtype)
