"""Channel masks on the CPU: `pdp.masks.units` and the sums of squares of each step, one kernel each for a layer.

Slice i along dimension 0 of every tensor belongs to unit i, and all tensors are float32 and dense in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.kernels.cpu import unit_masking
from pdp.kernels.cpu.layout import alike, readable
from pdp.kernels.cpu.team import run


def masked(mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
    """m_u * tensor for each tensor whose entry in `dtypes` is not None; float32."""
    wanted = [tensor for tensor, dtype in zip(tensors, dtypes, strict=True) if dtype is not None]
    made, factors = [torch.empty_like(tensor) for tensor in wanted], mask.contiguous()
    seen = (len(wanted), mask.numel(), factors.data_ptr(), *_places(wanted), *_places(made), *_lengths(wanted, mask))
    run(unit_masking.write_masked, _numbers(wanted), seen)
    return made


def gradients(
    mask: Tensor, steep: Tensor, tensors: Sequence[Tensor], weighs: Sequence[bool], upstream: dict[int, Tensor]
) -> dict[int, Tensor]:
    """The gradients of the stored tensors, by position, in their memory layout; float32.

    `upstream` are the gradients of some of the effective tensors, by position.
    """
    stored = list(map(readable, tensors))
    given = {place: alike(one, stored[place]) for place, one in upstream.items()}
    touched = [place for place, own in enumerate(weighs) if own or place in given]
    found = {place: torch.empty_like(stored[place]) for place in touched}
    factors, steepness = mask.contiguous(), steep.contiguous()
    units = (len(stored), mask.numel(), factors.data_ptr(), steepness.data_ptr())
    places = [
        *_places(stored),
        *(own[place].data_ptr() if place in own else 0 for own in (given, found) for place in range(len(stored))),
    ]
    run(unit_masking.write_gradients, _numbers(stored), (*units, *places, *_lengths(stored, mask), *weighs))
    return found


def row_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of squares of each slice along dimension 0, one tensor after the other; (slices of all,), float64."""
    rows = [len(one) for one in tensors]
    lengths = [one.numel() // max(count, 1) for one, count in zip(tensors, rows, strict=True)]
    squares = torch.empty(sum(rows), dtype=torch.float64, device="cpu")
    seen = (len(rows), squares.data_ptr(), *_places(tensors), *rows, *lengths)
    run(unit_masking.write_squares, _numbers(tensors), seen)
    return squares


def _numbers(tensors: Sequence[Tensor]) -> int:
    return sum(one.numel() for one in tensors)


def _places(tensors: Sequence[Tensor]) -> list[int]:
    return [one.data_ptr() for one in tensors]


def _lengths(tensors: Sequence[Tensor], mask: Tensor) -> list[int]:
    return [one.numel() // mask.numel() for one in tensors]
