"""The kernels called by cuts.py: exact selection of magnitudes by their bits, which sort in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at

_HOW: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}

INFINITE = np.int32(0x7F800000)  # the bits of infinity; larger values are NaN
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits except the sign
_BLOCK = 64  # magnitudes tested together; most blocks have none between the bounds
NARROWEST, WIDEST = 2.0**-12, 2.0**-4  # distance of the search bounds from the last cut, relative to it
MOVES = 4.0  # the first search covers moves of the cut up to this many times the last move
AGAIN = 16.0  # the second search, if the first failed, has bounds this many times wider


@njit(inline="always")
def _look(address, count, low, high, near, place, room):
    """Counts the magnitudes below `low`, and copies those between the bounds to `near` as far as there is room."""
    bits = bits_at(address, count)
    below, reached = np.int32(0), np.int32(0)
    for i in range(count):
        magnitude = bits[i] & _MAGNITUDE
        below += np.int32(magnitude < low)
        reached += np.int32(magnitude <= high)
    if reached != below:
        for i in range(count):
            magnitude = bits[i] & _MAGNITUDE
            if low <= magnitude <= high:
                if place < room:
                    near[place] = magnitude
                place += 1
    return below, place


@njit(inline="always")
def _sweep(address, first, last, low, high, near, place, room):
    """`_look` at the magnitudes from `first` to `last`, in blocks."""
    total = 0
    whole = first + (last - first) // _BLOCK * _BLOCK
    for start in range(first, whole, _BLOCK):
        count, place = _look(address + 4 * start, _BLOCK, low, high, near, place, room)
        total += count
    if whole < last:
        count, place = _look(address + 4 * whole, last - whole, low, high, near, place, room)
        total += count
    return total, place


@njit(**_HOW)
def gather(part, parts, addresses, lows, highs, layers, firsts, lasts, rooms, near, below, inside):
    """For each piece in one part: collects the magnitudes between its layer's bounds, and counts those below them."""
    for piece in range(layers.size * part // parts, layers.size * (part + 1) // parts):
        layer = layers[piece]
        address, low, high = addresses[layer], lows[layer], highs[layer]
        place = rooms[piece]
        below[piece], place = _sweep(address, firsts[piece], lasts[piece], low, high, near, place, rooms[piece + 1])
        inside[piece] = place - rooms[piece]


@njit(**_HOW)
def select(part, parts, ranks, lows, highs, pieces, rooms, near, below, inside, under, over):
    """The largest pruned and the smallest kept magnitude of each layer in a part; -1 where one is not between the
    bounds.
    """
    for layer in range(ranks.size * part // parts, ranks.size * (part + 1) // parts):
        first, last = pieces[layer], pieces[layer + 1]
        rank, total, complete = ranks[layer], 0, True
        for piece in range(first, last):
            rank -= below[piece]
            total += inside[piece]
            complete = complete and inside[piece] <= rooms[piece + 1] - rooms[piece]
        under[layer] = over[layer] = -1
        if complete and 0 < rank < total:
            found = _smallest_with(rank, lows[layer], highs[layer], first, last, rooms, near, inside)
            under[layer] = found
            reached = _count(found, first, last, rooms, near, inside)
            over[layer] = found if reached > rank else _next(found, first, last, rooms, near, inside)


@njit(**_HOW)
def find_short(part, parts, places, addresses, sizes, whole, ranks, rooms, near, cuts, moved, under, over):
    """The two neighbours of the cut for each layer in one part of `places`, all layers of a single piece.

    `under` and `over` hold those of the last search, with `cuts` and `moved`, and then the new ones: NaN where the
    search between bounds failed or where nothing or everything is pruned. A layer in `whole` has room for a search
    without bounds, which cannot fail.
    """
    bounds, inside = np.empty(2, np.int64), np.empty(1, np.int64)
    for number in range(places.size * part // parts, places.size * (part + 1) // parts):
        layer = places[number]
        rank, count, found = ranks[layer], sizes[layer], np.int32(-1)
        bounds[0], bounds[1] = rooms[number], rooms[number + 1]
        farthest = WIDEST * cuts[layer]
        reach = max(MOVES * moved[layer], NARROWEST * cuts[layer])
        bounded = reach <= farthest < np.inf
        for attempt in range(2 if 0 < rank < count and (bounded or whole[layer]) else 0):
            everything = whole[layer] and (attempt == 1 or not bounded)
            low = np.float32(0.0 if everything else max(under[layer] - reach, 0.0)).view(np.int32)
            high = np.float32(np.inf if everything else over[layer] + reach).view(np.int32)
            less, end = _sweep(addresses[layer], 0, count, low, high, near, bounds[0], bounds[1])
            inside[0] = end - bounds[0]
            if end <= bounds[1] and 0 < rank - less < inside[0]:
                found = np.int32(_smallest_with(rank - less, low, high, 0, 1, bounds, near, inside))
                reached = _count(found, 0, 1, bounds, near, inside)
                after = np.int32(found if reached > rank - less else _next(found, 0, 1, bounds, near, inside))
                under[layer], over[layer] = found.view(np.float32), after.view(np.float32)
                break
            if everything or not (whole[layer] or reach < farthest):
                break
            reach = min(AGAIN * reach, farthest)
        if found < 0:
            under[layer] = over[layer] = np.nan


@njit(**_HOW)
def settle(places, searched, sizes, ranks, cuts, moved, under, over, found):
    """Writes the cuts of the layers at `places` between their neighbours, and how far they have moved.

    Returns how many layers have no neighbours yet, and are left as they are; if all were `searched`, their cut is NaN.
    """
    without = 0
    for layer in places:
        cut = under[layer] + (over[layer] - under[layer]) * 0.5
        if 0 < ranks[layer] < sizes[layer]:
            if np.isnan(under[layer]) and not searched:
                without += 1
                continue
            found[layer] = cut
        else:
            found[layer] = np.inf if ranks[layer] > 0 else -np.inf
        moved[layer] = abs(cut - cuts[layer]) if np.isfinite(cuts[layer]) else np.inf
        cuts[layer] = cut
    return without


@njit(inline="always")
def _smallest_with(rank, low, high, first, last, rooms, near, inside):
    """The smallest m such that at least `rank` of the collected magnitudes are at most m, found by bisection."""
    while low < high:
        middle = low + (high - low) // 2
        if _count(middle, first, last, rooms, near, inside) >= rank:
            high = middle
        else:
            low = middle + 1
    return low


@njit
def _count(limit, first, last, rooms, near, inside):
    reached = np.int64(0)
    for piece in range(first, last):
        held = near[rooms[piece] : rooms[piece] + inside[piece]]
        for i in range(held.size):
            reached += np.int32(held[i] <= limit)
    return reached


@njit
def _next(limit, first, last, rooms, near, inside):
    """The smallest collected magnitude above `limit`."""
    smallest = INFINITE
    for piece in range(first, last):
        held = near[rooms[piece] : rooms[piece] + inside[piece]]
        for i in range(held.size):
            smallest = min(smallest, held[i] if held[i] > limit else INFINITE)
    return smallest
