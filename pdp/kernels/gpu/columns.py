"""Channel masks on a GPU for units in any layout: as columns of a weight, with several slices per unit, or slices of
none.

`units` handles the simpler and more frequent case: slice i belongs to unit i and is contiguous in memory.
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

_LEFT, _BLOCK = 128, 16  # columns and rows of a tile that a program loads at a time
_ENOUGH = 1024  # number of programs that keeps a GPU busy


class ColumnKernels:
    """The kernels that `pdp.masks.units` calls; `units` is the unit of each slice (None: slice i is of unit i)."""

    def __init__(self, units: Sequence[Tensor | None]):
        self.units = units

    def masked(self, mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
        """m_u * tensor, rounded once, for each tensor whose entry in `dtypes` is not None, in that dtype."""
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
        """The gradients of the stored tensors, by position, in their memory layout.

        `given` are the gradients of some of the effective tensors, by position.
        """
        given = {place: _laid_out_as(tensors[place], one) for place, one in given.items()}
        touched = [place for place, own in enumerate(weighs) if own or place in given]
        found = {place: _like(tensors[place], tensors[place].dtype) for place in touched}
        total = self._total(mask, tensors, given)
        masks, steeps, sums = self._spread(mask, 1.0), self._spread(steep, 0.0), self._spread(total, 0.0)
        # A vector whose squares are part of the saliency needs the gradient through the mask, so it gets a launch of
        # its own.
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
        """The gradient of each unit's mask, (units,)."""
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
                # Slices that belong to no unit add to an extra entry behind the last unit, which is dropped.
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
        """Pairs a weight with a vector over the same units, to handle both in one launch; the rest go alone."""
        loose = [one for one in places if tensors[one].dim() == 1 and one not in apart]
        found: list[tuple[int, int | None]] = []
        for head in [one for one in places if one not in loose]:
            mine = [one for one in loose if self.units[one] is self.units[head] and (given is None or one in given)]
            mine = [one for one in mine if len(tensors[one]) == len(tensors[head])]
            found.append((head, mine[0] if mine else None))
            loose = [one for one in loose if one != found[-1][1]]
        return [*found, *((one, None) for one in loose)]

    def _spread(self, values: Tensor, rest: float) -> Any:
        """A function that expands one number per unit to one per slice of a tensor; slices of no unit get `rest`."""
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
    """Whether the slices along dimension 0 are columns in memory (as in a vector); otherwise each is contiguous."""
    return tensor.dim() == 1 or not tensor.is_contiguous() and tensor.dim() == 2


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype)  # keeps the memory layout


def _laid_out_as(tensor: Tensor, gradient: Tensor) -> Tensor:
    return gradient if alike(gradient, tensor) else torch.empty_like(tensor, dtype=gradient.dtype).copy_(gradient)


def _parts(tensor: Tensor) -> tuple[int, int]:
    """How many parts the rows of a tensor are divided into, and how many rows each part has."""
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
