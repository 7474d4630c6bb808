"""Channel masks on the CPU: `pdp.masks.units` and the sums of squares of each step, one kernel each for all layers.

Slice i along dimension 0 of every tensor belongs to unit i, and all tensors are float32 and dense in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdp.kernels.cpu import unit_masking
from pdp.kernels.cpu.layout import alike, dense_stride, readable
from pdp.kernels.cpu.team import run
from pdp.masks.kept import keep, kept
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph
from pdp.masks.units import plain_units


class Units(NamedTuple):
    """A layer whose units are masked: arguments of `pdp.masks.units.mask_units`."""

    mask: Tensor
    steep: Tensor
    tensors: list[Tensor]
    weighs: list[bool]


def mask_layers(layers: Sequence[Units]) -> list[Tensor]:
    """The effective tensors of all layers, one layer's after the other's."""
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    masks = [layer.mask for layer in layers for _ in layer.tensors]
    made = [torch.empty_like(tensor) for tensor in tensors]
    _write_masked(tensors, made, masks)
    return made


def joined(layers: Sequence[Units], effective: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `mask_layers` has computed, differentiable in the tensors in a single node of autograd."""
    return _HostUnits.apply(layers, effective, *(tensor for layer in layers for tensor in layer.tensors))


def masked(mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
    """m_u * tensor for each tensor whose entry in `dtypes` is not None; float32."""
    wanted = [tensor for tensor, dtype in zip(tensors, dtypes, strict=True) if dtype is not None]
    made = [torch.empty_like(tensor) for tensor in wanted]
    _write_masked(wanted, made, [mask.contiguous()] * len(wanted))
    return made


def gradients(
    mask: Tensor, steep: Tensor, tensors: Sequence[Tensor], weighs: Sequence[bool], upstream: dict[int, Tensor]
) -> dict[int, Tensor]:
    """The gradients of the stored tensors, by position, in their memory layout; float32.

    `upstream` are the gradients of some of the effective tensors, by position.
    """
    given = [upstream.get(place) for place in range(len(tensors))]
    strides = [dense_stride(tensor) for tensor in tensors]
    found = _gradients([Units(mask, steep, list(tensors), list(weighs))], given, strides)
    return {place: one for place, one in enumerate(found) if one is not None}


def row_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of squares of each slice along dimension 0, one tensor after the other; (slices of all,), float64."""
    rows, sizes = [len(one) for one in tensors], [one.numel() for one in tensors]
    lengths = [size // max(count, 1) for size, count in zip(sizes, rows, strict=True)]
    squares = torch.empty(sum(rows), dtype=torch.float64, device="cpu")
    total = sum(sizes)
    seen = (len(rows), total, squares.data_ptr(), *_places(tensors), *rows, *lengths)
    run(unit_masking.write_squares, total, seen)
    return squares


class _HostUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layers: Sequence[Units], effective: Sequence[Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.layers = [layer._replace(tensors=[]) for layer in layers]
        ctx.counts, ctx.strides = [len(layer.tensors) for layer in layers], [tensor.stride() for tensor in tensors]
        keep(ctx, *tensors)
        ctx.set_materialize_grads(False)
        return tuple(effective)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        used: list[Units] = []
        given: list[Tensor | None] = []
        places: list[int] = []
        start = 0
        for layer, count in zip(ctx.layers, ctx.counts, strict=True):
            own = range(start, start + count)
            if any(upstream[place] is not None for place in own):  # the forward may have left the layer out
                places += own
                given += upstream[start : start + count]
                used.append(layer._replace(tensors=list(kept(ctx, own))))
            start += count
        strides = [ctx.strides[place] for place in places]
        made = _graphs(used, given) if wants_a_graph() else _gradients(used, given, strides)
        by_place = dict(zip(places, made, strict=True))
        return None, None, *(by_place.get(place) for place in range(start))


def _graphs(layers: Sequence[Units], upstream: Sequence[Tensor | None]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for layer in layers:
        given = upstream[len(found) : len(found) + len(layer.tensors)]

        def plain(*tensors: Tensor, layer: Units = layer) -> tuple[Tensor, ...]:
            none, kinds = [None] * len(tensors), [torch.float32] * len(tensors)
            return plain_units(layer.mask, layer.steep, tensors, none, layer.weighs, kinds)

        found += gradients_with_a_graph(plain, layer.tensors, given)
    return found


def _gradients(
    layers: Sequence[Units], upstream: Sequence[Tensor | None], strides: Sequence[tuple[int, ...]]
) -> list[Tensor | None]:
    """The gradients of all layers' tensors, given those of some of their effective tensors."""
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    stored = [readable(tensor, stride) for tensor, stride in zip(tensors, strides, strict=True)]
    weighs = [own for layer in layers for own in layer.weighs]
    given = [
        one if one is None else alike(one, tensor, stride)
        for one, tensor, stride in zip(upstream, stored, strides, strict=True)
    ]
    found = [
        torch.empty_like(tensor) if own or one is not None else None
        for tensor, own, one in zip(stored, weighs, given, strict=True)
    ]
    masks = [layer.mask.contiguous() for layer in layers]
    steeps = [layer.steep.contiguous() for layer in layers]
    units, counts = [mask.numel() for mask in masks], [len(layer.tensors) for layer in layers]
    lengths = [
        tensor.numel() // layer.mask.numel()
        for layer, tensor in zip((layer for layer in layers for _ in layer.tensors), stored, strict=True)
    ]
    ends = [sum(counts[: number + 1]) for number in range(len(layers))]
    whole = [sum(lengths[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    total = sum(one.numel() for one in stored)
    of_layers = (*_places(masks), *_places(steeps), *units, *counts, *whole)
    of_tensors = (*_places(stored), *_places(given), *_places(found), *lengths, *weighs)
    run(unit_masking.write_gradients, total, (len(layers), len(stored), total, *of_layers, *of_tensors))
    return found


def _write_masked(tensors: Sequence[Tensor], made: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    units = [mask.numel() for mask in masks]
    sizes = [tensor.numel() for tensor in tensors]
    lengths = [size // count for size, count in zip(sizes, units, strict=True)]
    total = sum(sizes)
    seen = (len(sizes), total, *_places(tensors), *_places(made), *_places(masks), *units, *lengths)
    run(unit_masking.write_masked, total, seen)


def _places(tensors: Sequence[Tensor | None]) -> list[int]:
    """The address of each tensor; 0 where there is none."""
    return [0 if one is None else one.data_ptr() for one in tensors]
