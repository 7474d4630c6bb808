"""Channels on a GPU: `pdp.masks.units` and a step's sums of squares in a few launches.

Every tensor's slice i along dimension 0 belongs to unit i, except in `UnitSquares`, and all of them lie dense.
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

_TILE = 2048  # numbers that a program holds of some rows
_BLOCKS = (32, 128, 512, 2048)  # of one row; few, as each is compiled by itself
_SQUARES = 1024
_VECTORS = 2  # that go with a tensor


def masked(mask: Tensor, tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> list[Tensor]:
    """m_u * tensor, rounded once, for each of `tensors` that `dtypes` names a type for."""
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
    """By place the gradients of the stored tensors, as these lie in memory, from those of some effective ones."""
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
    """What goes together in a launch: a tensor of rows and a few vectors; those left over, among themselves."""
    waiting = iter(vectors)
    found = [(head, *islice(waiting, _VECTORS)) for head in heads]
    while rest := tuple(islice(waiting, 1 + _VECTORS)):
        found.append(rest)
    return found


def _padded(head: int, vectors: Sequence[int], tensors: Sequence[Tensor], *others: dict[int, Tensor]) -> list[Tensor]:
    """A bundle's tensors, each with its counterparts in `others`; what is not there is filled up, not read."""
    places = [head, *vectors, *[head] * (_VECTORS - len(vectors))]
    return [one for place in places for one in (tensors[place], *(own.get(place, tensors[place]) for own in others))]


def launch_rows(
    kernel: Any, tensors: tuple[Tensor, ...], numbers: tuple[int, ...], head: Tensor, **constants: Any
) -> None:
    """A kernel of `unit_masking` over the rows of `head`, which lie in one piece each."""
    rows = len(head)
    length = head.numel() // rows
    block = next((one for one in _BLOCKS if one >= length), _BLOCKS[-1])
    together = _TILE // block
    programs = -(-rows // together)
    launch(kernel, programs, *tensors, *numbers, rows, length, **constants, ROWS=together, BLOCK=block)


class UnitSquares:
    """The sums of squares of each unit's rows in tensors of the same shapes, again and again, in one launch.

    `units` names the unit of each tensor's rows, one after the other; `scales`, (units,), float64, the factor of each.
    """

    def __init__(self, tensors: Sequence[Tensor], units: Tensor, scales: Tensor):
        self.device = scales.device
        self.scales = scales
        self.rows = np.array([len(one) for one in tensors])
        self.lengths = np.repeat([one.numel() // len(one) for one in tensors], self.rows)
        self.numbers = np.concatenate([np.arange(one) for one in self.rows])  # of each row in its tensor
        owners = units.cpu().numpy()
        self.order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=len(scales))
        self.starts = upload(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), self.device)
        self.sizes = upload(self.lengths[self.order].astype(np.int32), self.device)
        self.places: tuple[Any, ...] = ()

    def find(self, tensors: Sequence[Tensor]) -> Tensor:
        """(units,), float32; the tensors are of one type."""
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
