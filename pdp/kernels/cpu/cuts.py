"""The cuts of all layers on the CPU at once: exact, in one pass over the weights if the cuts moved little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.cpu import selection
from pdp.kernels.cpu.team import address, run
from pdp.masks.host_cut import neighbours

_WHOLE = 1 << 12  # a layer of at most this many magnitudes is searched whole, without bounds
_PIECE = 1 << 16  # magnitudes in a piece, the smallest amount of work for a thread
_SHARE_NEAR = 16  # there is room for one in 16 of a piece's magnitudes to lie between the bounds


class Cuts:
    """Finds the cuts of a fixed list of tensor sizes step after step; remembers where the last cuts were.

    Layers of a single piece are searched in one call of a kernel, because for them the calls are most of the work;
    longer ones are divided among threads.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self._begin([weight.numel() for weight in weights])

    def __reduce__(self) -> Any:  # a copy remembers nothing, because addresses of its arrays are kept
        return _made_for, (self._known,)

    def _begin(self, sizes: Sequence[int]) -> None:
        self._known, many = list(sizes), len(sizes)
        self._sizes = np.array(self._known, np.int64)
        self._small = (self._sizes <= _WHOLE).astype(np.int64)
        self._short = np.flatnonzero(self._sizes <= _PIECE)
        rooms = np.where(self._small > 0, self._sizes, -(-self._sizes // _SHARE_NEAR))[self._short]
        self._short_rooms = np.concatenate([[0], np.cumsum(rooms)])
        self._short_total = int(self._sizes[self._short].sum())
        self._short_near = np.empty(self._short_rooms[-1], np.int32)
        self._long = self._sizes > _PIECE
        self._long_places = np.flatnonzero(self._long)
        counts = np.where(self._long, -(-self._sizes // _PIECE), 0)
        self._pieces = np.concatenate([[0], np.cumsum(counts)])
        self._layers = layers = np.repeat(np.arange(many), counts)
        numbers = np.arange(len(layers)) - self._pieces[layers]
        # All pieces of a layer have about the same size, a multiple of a cache line.
        size = (-(-self._sizes // np.maximum(counts, 1)) + 15) // 16 * 16
        self._firsts = np.minimum(numbers * size[layers], self._sizes[layers])
        self._lasts = np.minimum(self._firsts + size[layers], self._sizes[layers])
        self._room = size[layers] // _SHARE_NEAR
        self._cuts = np.full(many, math.nan)
        self._moved = np.full(many, math.inf)
        self._below, self._above = np.full((2, many), math.nan)
        self._pruned: list[int] = []
        self._ranks, self._missed = np.zeros(many, np.int64), np.zeros(1, np.int64)
        last = (self._cuts, self._moved, self._below, self._above)
        seen = (self._short, self._short_rooms, self._short_near, self._missed)
        each = (self._sizes, self._ranks, self._small, *last)
        self._of_short = (many, self._short.size, self._short_near.size, *map(address, seen), *map(address, each))
        self._of_all = tuple(map(address, (self._missed, self._sizes, self._ranks, *last)))

    def match(self, weights: Sequence[Tensor]) -> bool:
        """Whether these weights have the sizes that this object was made for."""
        return [weight.numel() for weight in weights] == self._known

    def find(self, weights: Sequence[Tensor], pruned: Sequence[int]) -> Tensor:
        """One cut per weight, given the number of units to prune in each; float32, (weights,)."""
        found = torch.empty(len(weights), dtype=torch.float32, device="cpu")
        start = found.data_ptr()
        self._write(weights, pruned, range(start, start + 4 * len(weights), 4))
        return found

    def find_into(self, weights: Sequence[Tensor], pruned: Sequence[int], cuts: Sequence[Tensor]) -> None:
        """Writes the cut of each weight into one of `cuts`, float32."""
        torch.autograd.graph.increment_version(cuts)  # a backward may still need what they hold now
        self._write(weights, pruned, [cut.data_ptr() for cut in cuts])

    def _write(self, weights: Sequence[Tensor], pruned: Sequence[int], written: Sequence[int]) -> None:
        if pruned != self._pruned:
            self._pruned = []  # an interrupt may come between these lines
            self._ranks[:] = pruned
            self._pruned = list(pruned)
        places = [weight.data_ptr() for weight in weights]
        self._missed[0] = 0
        if self._short.size:
            run(selection.find_short, self._short_total, (*self._of_short, *places, *written))
        if self._long_places.size:
            ranks = self._ranks
            self._find_long(np.array(places), ranks, (ranks > 0) & (ranks < self._sizes) & self._long)
            self._settle(self._long_places, False, written)
        if self._missed[0]:
            missed = np.flatnonzero(np.isnan(self._below) & (self._ranks > 0) & (self._ranks < self._sizes))
            for layer in missed.tolist():
                weight = weights[layer].detach()
                flat = weight.as_strided((weight.numel(),), (1,)).numpy()
                self._below[layer], self._above[layer] = neighbours(flat, self._pruned[layer], magnitudes=True)
            self._settle(missed, True, written)

    def _settle(self, places: np.ndarray, searched: bool, written: Sequence[int]) -> None:
        counts = (len(self._known), places.size, searched, address(places))
        run(selection.settle, places.size, (*counts, *self._of_all, *written))

    def _find_long(self, addresses: np.ndarray, ranks: np.ndarray, within: np.ndarray) -> None:
        """`selection.find_short` for the layers of several pieces that are in `within`."""
        below, above = np.full((2, len(ranks)), math.nan)
        reach = np.maximum(selection.MOVES * self._moved, selection.NARROWEST * self._cuts)
        farthest = selection.WIDEST * self._cuts
        self._search(addresses, ranks, within & (reach <= farthest), reach, below, above)
        again = within & np.isnan(below) & (reach < farthest)
        self._search(addresses, ranks, again, np.minimum(selection.AGAIN * reach, farthest), below, above)
        self._below[self._long], self._above[self._long] = below[self._long], above[self._long]

    def _search(
        self,
        addresses: np.ndarray,
        ranks: np.ndarray,
        tried: np.ndarray,
        reach: np.ndarray,
        below: np.ndarray,
        above: np.ndarray,
    ) -> None:
        """Fills in the two neighbours of the cut for each layer in `tried` whose cut moved by at most `reach`."""
        if not tried.any():
            return
        low, high = np.maximum(self._below - reach, 0.0)[tried], (self._above + reach)[tried]
        low, high = (bound.astype(np.float32).view(np.int32) for bound in (low, high))
        taken = tried[self._layers]
        counts = np.diff(self._pieces)[tried]
        pieces = np.concatenate([[0], np.cumsum(counts)])
        rooms = np.concatenate([[0], np.cumsum(self._room[taken])])
        near = np.empty(rooms[-1], np.int32)
        under, inside = np.empty((2, len(rooms) - 1), np.int64)
        layers = np.repeat(np.arange(len(counts)), counts)
        where = (layers, self._firsts[taken], self._lasts[taken], rooms)
        seen = (addresses[tried], low, high, *where, near, under, inside)
        found = np.empty((2, len(counts)), np.int32)
        among = (ranks[tried], low, high, pieces, rooms, near, under, inside, *found)
        numbers = int(self._sizes[tried].sum())
        run(selection.gather, numbers, (len(layers), len(counts), near.size, *map(address, seen)))
        run(selection.select, numbers, (len(counts), len(layers), near.size, *map(address, among)))
        values = np.where(found < 0, math.nan, found.view(np.float32).astype(np.float64))
        below[tried], above[tried] = values


def _made_for(sizes: Sequence[int]) -> Cuts:
    made = Cuts([])
    made._begin(sizes)
    return made
