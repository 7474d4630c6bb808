"""The cuts of all layers on a GPU at once: exact, in one pass over the weights if the cuts moved little."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from pdp.kernels.gpu import selection
from pdp.kernels.gpu.launching import launch

CHUNK = 1024  # magnitudes that a program processes
_AT_ONCE = 4096  # magnitudes loaded at a time when selecting among those near a cut
MOST_PROGRAMS = 1024  # most programs of the digit-by-digit selection, which usually has nothing to do
_LAYERS = 256  # layers in a program that handles one number per layer
_SHARE_KEPT = 8  # there is room for one in 8 of a layer's magnitudes to lie between the bounds
_LEAST_KEPT = 1024
_DIGITS = ((20, 11), (10, 10), (0, 10))  # (first bit, number of bits) of each digit of the 31-bit magnitudes
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Cuts:
    """Finds the cuts of a fixed list of tensor sizes step after step; remembers where the last cuts were.

    The host never waits for the device. After `find`, `prefix` holds the bits of each layer's largest pruned magnitude;
    `ties` is how many weights have exactly that magnitude, and `taken` is how many of them are pruned.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self.sizes_key = _sizes(weights)
        self.kind = TYPES[weights[0].dtype]
        self.device = weights[0].device
        sizes = np.array([weight.numel() for weight in weights], np.int64)
        chunks = -(-sizes // CHUNK)
        layers = np.arange(len(sizes), dtype=np.int32)
        first = np.concatenate([[0], np.cumsum(chunks)])
        numbers = np.arange(chunks.sum()) - np.repeat(first[:-1], chunks)
        room = np.maximum(sizes // _SHARE_KEPT, _LEAST_KEPT)
        self.sizes = upload(sizes.astype(np.int32), self.device)
        self.chunk_layer = upload(np.repeat(layers, chunks), self.device)
        self.chunk_number = upload(numbers.astype(np.int32), self.device)
        self.first_chunk = upload(first.astype(np.int32), self.device)
        self.room = int(room.sum())
        self.starts = upload(np.concatenate([[0], np.cumsum(room)]), self.device)
        self.places: tuple[int, ...] = ()
        self.pruned: tuple[int, ...] = ()
        zeros = partial(torch.zeros, dtype=torch.int32, device=self.device)
        self.low, self.high, self.found, self.prefix, self.rank, self.above, self.taken, self.ties = zeros(
            (8, len(sizes))
        ).unbind(0)
        self.below, self.inside, self.missing = zeros(len(numbers)), zeros(len(sizes) * selection.APART), zeros(1)
        self.counts = zeros((len(sizes), selection.BINS))
        self.interrupted = False
        self.cuts, self.drift, self.moved, self.gaps = torch.zeros(
            (4, len(sizes)), dtype=torch.float32, device=self.device
        ).unbind(0)
        # Besides its constants a compiled kernel depends only on the alignment of its tensors; the buffers that are
        # allocated anew in every step always begin at multiples of 16 bytes.
        facts = tuple(one.data_ptr() % 16 == 0 for one in vars(self).values() if isinstance(one, Tensor))
        self.known = ("cuts", len(sizes), len(numbers), facts)

    def match(self, weights: Sequence[Tensor]) -> bool:
        """Whether these weights have the sizes that this object was made for."""
        return self.sizes_key == _sizes(weights) and self.device == weights[0].device

    def find(self, weights: Sequence[Tensor], pruned: Sequence[int]) -> Tensor:
        """One cut per weight, given the number of units to prune in each; float32, (weights,), overwritten by the next
        call.
        """
        if tuple(pruned) != self.pruned:
            self.pruned = tuple(pruned)
            self.goal = upload(np.array(pruned, np.int32), self.device)
        places = tuple(weight.data_ptr() for weight in weights)
        if places != self.places:
            self.places = places
            self.addresses = upload(np.array(places, np.int64), self.device)
            self.aligned = all(place % 16 == 0 for place in places)
        layers, chunks = len(self.pruned), self.chunk_layer.numel()
        few = min(chunks, MOST_PROGRAMS)
        if self.interrupted:
            self.counts.zero_()
        self.interrupted = True
        buffer = torch.empty(self.room, dtype=torch.int32, device=self.device)
        stored = (self.addresses, self.chunk_layer, self.chunk_number, self.sizes)
        how = {"TYPE": self.kind, "ALIGNED": self.aligned, "BLOCK": CHUNK}
        bounds, equal = (self.low, self.high), (self.taken, self.ties)
        state, trail = (self.prefix, self.rank, self.above), (self.cuts, self.drift, self.moved, self.gaps)
        wide: dict[str, Any] = {"WIDE": selection.WIDEST}
        space: dict[str, Any] = {"SPACE": selection.APART}
        launch(
            selection.find_bounds, -(-layers // _LAYERS), self.goal, self.sizes, *trail, *bounds, self.inside,
            self.found, self.missing, *state, layers, known=self.known, NARROW=selection.NARROWEST, **wide, **space,
            BLOCK=_LAYERS,
        )  # fmt: skip
        launch(
            selection.gather, chunks, *stored, *bounds, self.below, self.inside, self.found, buffer, self.starts,
            known=self.known, TYPE=self.kind, ALIGNED=self.aligned, **space, BLOCK=CHUNK,
        )  # fmt: skip
        launch(
            selection.select, layers, self.goal, *bounds, self.below, self.first_chunk, self.inside, self.found,
            self.missing, buffer, self.starts, self.prefix, *equal, *trail, **wide, **space,
            known=self.known, BLOCK=_AT_ONCE, warps=8,
        )  # fmt: skip
        for shift, width in _DIGITS:
            launch(
                selection.count_digits, few, *stored, chunks, self.prefix, self.found, self.missing, self.counts,
                known=self.known, SHIFT=shift, WIDTH=width, **how,
            )  # fmt: skip
            launch(
                selection.choose_digit, layers, self.prefix, self.rank, self.found, self.counts, self.above, *equal,
                known=self.known, WIDTH=width, LAST=shift == 0,
            )  # fmt: skip
        launch(
            selection.find_above, few, *stored, chunks, self.prefix, self.found, self.missing, self.above,
            known=self.known, **how,
        )  # fmt: skip
        launch(selection.finish, layers, self.prefix, self.above, self.found, *trail, known=self.known, **wide)
        self.interrupted = False
        return self.cuts


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Copies to the device without waiting for the copy to finish."""
    held = torch.from_numpy(values)
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held


def _sizes(weights: Sequence[Tensor]) -> tuple[tuple[int, torch.dtype], ...]:
    return tuple((weight.numel(), weight.dtype) for weight in weights)
