"""The soft mask of whole units (channels), applied to all tensors of a layer, and its gradient for the unit's weights.

The plain operations here define the result. A caller may pass kernels that compute the same in fewer launches.
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

_FLAT = 1e-7  # below this m (1 - m) the mask is treated as constant


def steepness(mask: Tensor, factor: Tensor) -> Tensor:
    """m (1 - m) * factor, which broadcasts against `mask`.

    With factor = 2 scale / tau, the derivative of unit u's mask for one of its weights w is d m_u / d w = steepness_u *
    w.
    """
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
    """m_u * tensor for each tensor whose entry in `dtypes` is not None, in that dtype; differentiable in all tensors.

    `mask` is (units,), m = sigmoid((s^2 - t^2) / tau), where s^2 = scale * the sum of squares of the unit's weights,
    computed from the tensors for which `weighs` is True. `steep` is the mask's `steepness`. Neither may be changed
    before backward. `units` gives, for each tensor, the unit of each slice along dimension 0, or None where slice i
    belongs to unit i. A slice that belongs to no unit has the index len(mask) and stays as it is. `kernels` is the
    result of `unit_kernels` of `pdp.kernels.gpu` or `.cpu` for these tensors. Raises `RuntimeError` in backward if a
    tensor has been changed in place since.
    """
    if in_transform():
        return plain_units(mask, steep, tensors, units, weighs, dtypes)
    if not torch.is_grad_enabled():
        return _masked(mask, tensors, units, dtypes, kernels)
    return _MaskUnits.apply(mask, steep, list(units), list(weighs), list(dtypes), kernels, *tensors)


def plain_units(
    mask: Tensor,
    steep: Tensor,
    tensors: Sequence[Tensor],
    units: Sequence[Tensor | None],
    weighs: Sequence[bool],
    dtypes: Sequence[torch.dtype | None],
) -> tuple[Tensor, ...]:
    """`mask_units` in plain PyTorch operations, which support derivatives of any order and every mode.

    The value of the mask stays the one given; only its derivative is attached, through the squares of the unit's
    weights.
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
    # d m / d s^2 = m (1 - m) factor / 2. A logit with this derivative gives the mask its gradient.
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
    """Expands one number per unit so that it broadcasts against `tensor`, whose slices along dimension 0 belong to
    `units`.

    Slices that belong to no unit (index len(values)) get the number `rest`.
    """
    of_slices = values if units is None else with_rest(values, rest)[units]
    return of_slices.reshape(-1, *[1] * (tensor.dim() - 1))


def with_rest(values: Tensor, rest: float = 1.0) -> Tensor:
    """The numbers of the units with `rest` appended, the number for slices that belong to no unit."""
    return torch.cat([values, values.new_full((1,), rest)])


def _gathered(mask: Tensor, units: Tensor, sums: Tensor) -> Tensor:
    """Adds up the sums of slices by unit; slices that belong to no unit are dropped."""
    return with_rest(torch.zeros_like(mask)).index_add(0, units, sums)[:-1]


def _plain_of(mask: Tensor, steep: Tensor, units: list, weighs: list, dtypes: list, *tensors: Tensor):
    return plain_units(mask, steep, tensors, units, weighs, dtypes)


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
    """One autograd node for a whole layer.

    With a node for each tensor, autograd would add up full-size gradients of the weight, one for each tensor that the
    mask scales.
    """

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
                # In the weight's memory layout, because this buffer becomes the weight's gradient.
                found[place] = exact(tensor) * gradient
                rows = _row_sums(found[place]).to(mask.dtype)
                if units[place] is not None:
                    rows = with_rest(torch.zeros_like(mask), 0.0).index_add_(0, units[place], rows)[:-1]
                sums.append(rows)
        slope = (torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]) * steep
        for place, tensor in enumerate(tensors):
            if place in upstream and place not in vectors:
                # A graph of PyTorch 2.11 would break where memory in channels last is given.
                into = None if torch.compiler.is_compiling() else found[place]
                found[place] = torch.mul(upstream[place], along(mask, units[place], tensor), out=into)
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
    """Multiplies several vectors of equal length, each by its partner in the list `by` or all by one vector, in one
    operation.
    """
    if not tensors:
        return ()
    return torch._foreach_mul(tensors, by if isinstance(by, list) else [by] * len(tensors))


def _scaled(tensor: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of `tensor` and float32 numbers in `dtype`, rounded only once."""
    if dtype == (torch.float64 if tensor.dtype == torch.float64 else by.dtype):
        return tensor * by
    if torch.compiler.is_compiling():
        return (tensor * by).to(dtype)
    return torch.mul(tensor, by, out=torch.empty_like(tensor, dtype=dtype))


def _row_sums(values: Tensor) -> Tensor:
    return values.sum(dim=tuple(range(1, values.dim()))) if values.dim() > 1 else values


def _in_type_of(gradient: Tensor | None, tensor: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(tensor.dtype)
