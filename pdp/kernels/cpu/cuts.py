"""The cuts of all layers on the CPU at once: exact, in one pass over the weights if the cuts moved little."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.cpu import selection
from pdp.kernels.cpu.parting import parting
from pdp.masks.host_cut import neighbours
from pdp.threads import in_parts

_WHOLE = 1 << 12  # a layer of at most this many magnitudes is searched whole, without bounds
_PIECE = 1 << 16  # magnitudes in a piece, the smallest amount of work for a thread
_SHARE_NEAR = 16  # there is room for one in 16 of a piece's magnitudes to lie between the bounds
_NARROWEST, _WIDEST = 2.0**-12, 2.0**-4  # distance of the search bounds from the last cut, relative to it
_MOVES = 4  # the first search covers moves of the cut up to this many times the last move
_AGAIN = 16  # the second search, if the first failed, has bounds this many times wider


class Cuts:
    """Finds the cuts of a fixed list of tensor sizes step after step; remembers where the last cuts were."""

    def __init__(self, weights: Sequence[Tensor]):
        self._known = [weight.numel() for weight in weights]
        self._sizes = np.array(self._known, np.int64)
        self._small = self._sizes <= _WHOLE
        counts = -(-self._sizes // _PIECE)
        self._pieces = np.concatenate([[0], np.cumsum(counts)])
        self._layers = layers = np.repeat(np.arange(len(weights)), counts)
        numbers = np.arange(len(layers)) - self._pieces[layers]
        # All pieces of a layer have about the same size, a multiple of a cache line.
        size = (-(-self._sizes // np.maximum(counts, 1)) + 15) // 16 * 16
        self._firsts = np.minimum(numbers * size[layers], self._sizes[layers])
        self._lasts = np.minimum(self._firsts + size[layers], self._sizes[layers])
        self._room = np.where(self._small[layers], self._lasts - self._firsts, size[layers] // _SHARE_NEAR)
        self._cuts = np.full(len(weights), math.nan)
        self._moved = np.full(len(weights), math.inf)
        self._below, self._above = np.full((2, len(weights)), math.nan)

    def match(self, weights: Sequence[Tensor]) -> bool:
        """Whether these weights have the sizes that this object was made for."""
        return [weight.numel() for weight in weights] == self._known

    def find(self, weights: Sequence[Tensor], pruned: Sequence[int]) -> Tensor:
        """One cut per weight, given the number of units to prune in each; float32, (weights,)."""
        ranks = np.array(pruned, np.int64)
        within = (ranks > 0) & (ranks < self._sizes)
        addresses = np.array([weight.data_ptr() for weight in weights], np.int64)
        below, above = np.full((2, len(ranks)), math.nan)
        reach = np.maximum(_MOVES * self._moved, _NARROWEST * self._cuts)
        tried = within & (self._small | (reach <= _WIDEST * self._cuts))
        self._search(addresses, ranks, tried, reach, below, above)
        missed = within & np.isnan(below)
        again = missed & ~self._small & (reach < _WIDEST * self._cuts)
        self._search(addresses, ranks, again, np.minimum(_AGAIN * reach, _WIDEST * self._cuts), below, above)
        for layer in np.flatnonzero(within & np.isnan(below)).tolist():
            weight = weights[layer].detach()
            flat = weight.as_strided((weight.numel(),), (1,)).numpy()
            below[layer], above[layer] = neighbours(flat, pruned[layer], magnitudes=True)
        with np.errstate(invalid="ignore"):  # infinite weights give inf - inf
            cuts = below + (above - below) * 0.5
            self._moved = np.where(np.isfinite(self._cuts), np.abs(cuts - self._cuts), math.inf)
        self._cuts, self._below, self._above = cuts, below, above
        endless = np.where(ranks > 0, math.inf, -math.inf)
        return torch.from_numpy(np.where(within, cuts, endless).astype(np.float32))

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
        low = np.where(self._small, 0.0, np.maximum(self._below - reach, 0.0))[tried]
        high = np.where(self._small, math.inf, self._above + reach)[tried]
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
        among = (ranks[tried], low, high, pieces, rooms, near, under, inside)
        found = np.empty((2, len(counts)), np.int32)
        parts = parting(int(self._sizes[tried].sum()))
        in_parts(selection.gather, *parts, *seen)
        in_parts(selection.select, *parts, *among, *found)
        values = np.where(found < 0, math.nan, found.view(np.float32).astype(np.float64))
        below[tried], above[tried] = values
