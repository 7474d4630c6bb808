"""Channel masks on a GPU: `pdp.masks.units` and the sums of squares of each step, in a few launches.

Slice i along dimension 0 of every tensor belongs to unit i (except in `UnitSquares`), and all tensors are dense in
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.gpu import unit_masking
from pdp.kernels.gpu.cuts import TYPES, upload
from pdp.kernels.gpu.launching import launch
from pdp.kernels.gpu.masks import alike

_TILE = 2048  # elements that a program holds, from one or more rows
_BLOCKS = (32, 128, 512, 2048)  # elements of one row; few sizes, because each one is compiled separately
_SQUARES = 1024
_VECTORS = 2  # vectors processed along with a tensor


def masked(mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
    """m_u * tensor, rounded once, for each tensor whose entry in `dtypes` is not None, in that dtype."""
    made = {
        place: torch.empty_like(tensors[place], dtype=dtype) for place, dtype in enumerate(dtypes) if dtype is not None
    }
    heads = [place for place in made if tensors[place].dim() > 1]
    for head, *vectors in _bundles(heads, [place for place in made if tensors[place].dim() == 1]):
        pairs = _padded(head, vectors, tensors, made)
        launch_rows(unit_masking.write_masked, (mask, *pairs), (), tensors[head], VECTORS=len(vectors))
    return list(made.values())


def gradients(
    mask: Tensor, steep: Tensor, tensors: Sequence[Tensor], weighs: Sequence[bool], upstream: dict[int, Tensor]
) -> dict[int, Tensor]:
    """The gradients of the stored tensors, by position, in their memory layout.

    `upstream` are the gradients of some of the effective tensors, by position.
    """
    given = {place: _laid_out_as(tensors[place], one) for place, one in upstream.items()}
    touched = [place for place, own in enumerate(weighs) if own or place in given]
    found = {place: torch.empty_like(tensors[place]) for place in touched}
    vectors = [place for place in touched if tensors[place].dim() == 1 and not weighs[place]]
    bundles = _bundles([place for place in touched if place not in vectors], vectors)
    adding = [one for one in bundles if any(place in given for place in one)]
    alone = len(bundles) == 1
    sums = mask.new_empty(len(adding), len(mask))
    if not alone:
        for line, (head, *more) in zip(sums, adding, strict=True):
            pairs = (*_padded(head, more, tensors, given), line)
            launch_rows(unit_masking.write_sums, pairs, (), tensors[head], GIVEN=head in given, VECTORS=len(more))
    for head, *more in bundles:
        launch_rows(
            unit_masking.write_slopes, (mask, steep, *_padded(head, more, tensors, given, found), sums),
            (len(adding),), tensors[head], GIVEN=head in given, WEIGHS=weighs[head], ALONE=alone, VECTORS=len(more),
        )  # fmt: skip
    return found


def _laid_out_as(tensor: Tensor, gradient: Tensor) -> Tensor:
    return gradient if alike(gradient, tensor) else torch.empty_like(tensor, dtype=gradient.dtype).copy_(gradient)


def _bundles(heads: Sequence[int], vectors: Sequence[int]) -> list[tuple[int, ...]]:
    """Groups positions into launches: a tensor with rows and a few vectors each; the remaining vectors among
    themselves.
    """
    waiting = iter(vectors)
    found = [(head, *islice(waiting, _VECTORS)) for head in heads]
    while rest := tuple(islice(waiting, 1 + _VECTORS)):
        found.append(rest)
    return found


def _padded(head: int, vectors: Sequence[int], tensors: Sequence[Tensor], *others: dict[int, Tensor]) -> list[Tensor]:
    """The tensors of a launch, each with its partners in `others`; unused arguments repeat one that is not read."""
    places = [head, *vectors, *[head] * (_VECTORS - len(vectors))]
    return [one for place in places for one in (tensors[place], *(own.get(place, tensors[place]) for own in others))]


def launch_rows(
    kernel: Any, tensors: tuple[Tensor, ...], numbers: tuple[int, ...], head: Tensor, **constants: Any
) -> None:
    """Launches a kernel of `unit_masking` over the rows of `head`, each of which is contiguous in memory."""
    rows = len(head)
    length = head.numel() // rows
    block = next((one for one in _BLOCKS if one >= length), _BLOCKS[-1])
    together = _TILE // block
    programs = -(-rows // together)
    launch(kernel, programs, *tensors, *numbers, rows, length, **constants, ROWS=together, BLOCK=block)


class UnitSquares:
    """The sums of squares of each unit's rows, in one launch, for tensors of the same shapes step after step.

    `units` gives the unit of each row of each tensor, one tensor after the other; `scales` is (units,), float64, a
    factor for each unit.
    """

    def __init__(self, tensors: Sequence[Tensor], units: Tensor, scales: Tensor):
        self.device = scales.device
        self.scales = scales
        self.rows = np.array([len(one) for one in tensors])
        self.lengths = np.repeat([one.numel() // len(one) for one in tensors], self.rows)
        self.numbers = np.concatenate([np.arange(one) for one in self.rows])  # the number of each row within its tensor
        owners = units.cpu().numpy()
        self.order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=len(scales))
        self.starts = upload(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), self.device)
        self.sizes = upload(self.lengths[self.order].astype(np.int32), self.device)
        self.places: tuple[Any, ...] = ()

    def find(self, tensors: Sequence[Tensor]) -> Tensor:
        """The scaled sums, (units,), float32; all tensors have the same dtype."""
        kind = tensors[0].dtype
        places = [one.data_ptr() for one in tensors]
        if (kind, *places) != self.places:
            self.places = (kind, *places)
            addresses = np.repeat(np.array(places, np.int64), self.rows) + self.numbers * self.lengths * kind.itemsize
            self.addresses = upload(addresses[self.order], self.device)
            self.aligned = not (addresses % 16).any() and not (self.lengths % 16).any()
        squares = torch.empty_like(self.scales, dtype=torch.float32)
        launch(
            unit_masking.write_squares, len(squares), self.addresses, self.sizes, self.starts, self.scales, squares,
            TYPE=TYPES[kind], ALIGNED=self.aligned, BLOCK=_SQUARES,
        )  # fmt: skip
        return squares
