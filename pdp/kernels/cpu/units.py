"""Channel masks on the CPU: `pdp.masks.units` and the sums of squares of each step, one kernel each for a layer.

Slice i along dimension 0 of every tensor belongs to unit i, and all tensors are float32 and dense in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.cpu import unit_masking
from pdp.kernels.cpu.masks import alike, readable
from pdp.kernels.cpu.parting import parting
from pdp.masks.units import along
from pdp.threads import in_parts

# Numbers of a layer. Above this a product is faster as an operation of PyTorch, whose threads are awake in a forward.
_SMALL = 1 << 17


def masked(mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
    """m_u * tensor for each tensor whose entry in `dtypes` is not None; float32."""
    wanted = [tensor for tensor, dtype in zip(tensors, dtypes, strict=True) if dtype is not None]
    if sum(tensor.numel() for tensor in wanted) > _SMALL:
        return [tensor * along(mask, None, tensor) for tensor in wanted]
    made = [torch.empty_like(tensor) for tensor in wanted]
    lengths, factors = _lengths(wanted, mask), mask.contiguous()
    seen = (*_places(wanted, made), lengths, mask.numel(), factors.data_ptr())
    in_parts(unit_masking.write_masked, *_parting(lengths, mask), *seen)
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
    lengths, factors, steepness = _lengths(stored, mask), mask.contiguous(), steep.contiguous()
    places = _places(stored, *([own.get(place) for place in range(len(stored))] for own in (given, found)))
    units = (mask.numel(), factors.data_ptr(), steepness.data_ptr())
    seen = (*places, lengths, np.array(weighs, np.bool_), *units)
    in_parts(unit_masking.write_gradients, *_parting(lengths, mask), *seen)
    return found


def row_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of squares of each slice along dimension 0, one tensor after the other; (slices of all,), float64."""
    rows = np.array([len(one) for one in tensors], np.int64)
    sizes = np.array([one.numel() for one in tensors], np.int64)
    squares = np.empty(int(rows.sum()))
    seen = (*_places(tensors), rows, sizes // np.maximum(rows, 1), np.cumsum(rows) - rows, squares)
    in_parts(unit_masking.write_squares, *parting(int(sizes.sum())), *seen)
    return torch.from_numpy(squares)


def _lengths(tensors: Sequence[Tensor], mask: Tensor) -> np.ndarray:
    return np.array([one.numel() // mask.numel() for one in tensors], np.int64)


def _parting(lengths: np.ndarray, mask: Tensor) -> tuple[int, int]:
    parts, helpers = parting(int(lengths.sum()) * mask.numel())
    return min(parts, mask.numel()), min(helpers, mask.numel() - 1)


def _places(*tensors: Sequence[Any]) -> np.ndarray:
    """The address of each tensor, one row for each sequence; 0 where there is none."""
    return np.array([[0 if one is None else one.data_ptr() for one in ones] for ones in tensors], np.int64)
