"""Channels on a GPU where units lie as they like: as columns of a weight, several slices to a unit, or of none.

`units` holds what is simpler and more frequent: slice i belongs to unit i and lies in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.kernels.gpu import unit_columns, unit_masking
from pdp.kernels.gpu.launching import launch
from pdp.kernels.gpu.masks import alike
from pdp.kernels.gpu.units import launch_rows

_LEFT, _BLOCK = 128, 16  # columns and rows that a program holds
_ENOUGH = 1024  # programs for a GPU to be busy


class ColumnKernels:
    """What `pdp.masks.units` asks for, for tensors whose slices belong to `units` (None: slice i to unit i)."""

    def __init__(self, units: Sequence[Tensor | None]):
        self.units = units

    def masked(self, mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
        """m_u * tensor, rounded once, for each of `tensors` that `dtypes` names a type for."""
        made = {place: _like(tensors[place], dtype) for place, dtype in enumerate(dtypes) if dtype is not None}
        spread = self._spread(mask, 1.0)
        for head, vector in self._pairs(tensors, list(made)):
            two, more = (head, 0) if vector is None else (vector, 1)
            pairs = (tensors[head], made[head], tensors[two], made[two])
            if _in_columns(tensors[head]):
                _launch(unit_columns.write_masked_columns, tensors[head], spread(head), *pairs, VECTOR=more)
            else:
                arguments = (spread(head), *pairs, *pairs[:2])
                launch_rows(unit_masking.write_masked, arguments, (), tensors[head], VECTORS=more)
        return list(made.values())

    def gradients(
        self, mask: Tensor, steep: Tensor, tensors: Sequence[Tensor], weighs: Sequence[bool], given: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """By place the gradients of the stored tensors, as these lie in memory, from those of some effective ones."""
        given = {place: _laid_out_as(tensors[place], one) for place, one in given.items()}
        touched = [place for place, own in enumerate(weighs) if own or place in given]
        found = {place: _like(tensors[place], tensors[place].dtype) for place in touched}
        total = self._total(mask, tensors, given)
        masks, steeps, sums = self._spread(mask, 1.0), self._spread(steep, 0.0), self._spread(total, 0.0)
        # A vector that weighs needs a slope of its own.
        for head, vector in self._pairs(tensors, touched, {place for place in touched if weighs[place]}, given):
            two, more = (head, 0) if vector is None else (vector, 1)
            weight, one = ((tensors[at], given.get(at, tensors[at]), found[at]) for at in (head, two))
            how: dict[str, Any] = {"GIVEN": head in given, "WEIGHS": weighs[head]}
            if _in_columns(tensors[head]):
                own = (masks(head), steeps(head), sums(head))
                _launch(unit_columns.write_column_slopes, tensors[head], *own, *weight, *one, **how, VECTOR=more)
            else:
                arguments = (masks(head), steeps(head), *weight, *one, *weight, sums(head))
                how |= {"ALONE": False, "VECTORS": more}
                launch_rows(unit_masking.write_slopes, arguments, (1,), tensors[head], **how)
        return found

    def _total(self, mask: Tensor, tensors: Sequence[Tensor], given: dict[int, Tensor]) -> Tensor:
        """The gradient of each unit's mask."""
        lines: list[Tensor] = []
        for head, vector in self._pairs(tensors, list(given)):
            two, more = (head, 0) if vector is None else (vector, 1)
            pairs = (tensors[head], given[head], tensors[two], given[two])
            if _in_columns(tensors[head]):
                sums = mask.new_empty(_parts(tensors[head])[0], len(tensors[head]))
                _launch(unit_columns.write_column_sums, tensors[head], *pairs, sums, VECTOR=more)
            else:
                sums = mask.new_empty(1, len(tensors[head]))
                arguments = (*pairs, *pairs[:2], sums)
                launch_rows(unit_masking.write_sums, arguments, (), tensors[head], GIVEN=True, VECTORS=more)
            units = self.units[head]
            if units is not None:
                # A slice of no unit adds to the number behind the last.
                sums = mask.new_zeros(len(mask) + 1).index_add_(0, units, sums.sum(0))[None, :-1]
            lines.append(sums)
        return (lines[0] if len(lines) == 1 else torch.cat(lines)).sum(0)

    def _pairs(
        self,
        tensors: Sequence[Tensor],
        places: list[int],
        apart: set[int] = frozenset(),  # type: ignore[assignment]
        given: dict[int, Tensor] | None = None,
    ) -> list[tuple[int, int | None]]:
        """What goes together in a launch: a weight and a vector over the same units; what is left, by itself."""
        loose = [one for one in places if tensors[one].dim() == 1 and one not in apart]
        found: list[tuple[int, int | None]] = []
        for head in [one for one in places if one not in loose]:
            mine = [one for one in loose if self.units[one] is self.units[head] and (given is None or one in given)]
            mine = [one for one in mine if len(tensors[one]) == len(tensors[head])]
            found.append((head, mine[0] if mine else None))
            loose = [one for one in loose if one != found[-1][1]]
        return [*found, *((one, None) for one in loose)]

    def _spread(self, values: Tensor, rest: float) -> Any:
        """Numbers over units as numbers over a tensor's slices; `rest` is that of slices of no unit."""
        known: dict[int, Tensor] = {}

        def of(place: int) -> Tensor:
            units = self.units[place]
            if units is None:
                return values
            if id(units) not in known:
                known[id(units)] = torch.cat([values, values.new_full((1,), rest)])[units]
            return known[id(units)]

        return of


def _in_columns(tensor: Tensor) -> bool:
    """Whether slices along dimension 0 are columns, as a vector's numbers are; else each lies in one piece."""
    return tensor.dim() == 1 or not tensor.is_contiguous() and tensor.dim() == 2


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype)  # keeps the order in memory


def _laid_out_as(tensor: Tensor, gradient: Tensor) -> Tensor:
    return gradient if alike(gradient, tensor) else torch.empty_like(tensor, dtype=gradient.dtype).copy_(gradient)


def _parts(tensor: Tensor) -> tuple[int, int]:
    """Into how many parts the rows of a tensor fall, and how many rows each has."""
    rows = tensor.numel() // len(tensor)
    wanted = max(1, min(-(-rows // (2 * _BLOCK)), -(-_ENOUGH // -(-len(tensor) // _LEFT))))
    each = -(-rows // wanted // _BLOCK) * _BLOCK
    return -(-rows // each), each


def _launch(kernel: Any, head: Tensor, *arguments: Tensor, **constants: Any) -> None:
    parts, each = _parts(head)
    columns = len(head)
    programs = parts * -(-columns // _LEFT)
    numbers = (head.numel() // columns, columns, each)
    launch(kernel, programs, *arguments, *numbers, **constants, LEFT=_LEFT, BLOCK=_BLOCK)
