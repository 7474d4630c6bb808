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


@njit(**_HOW)
def gather(part, parts, addresses, lows, highs, layers, firsts, lasts, rooms, near, below, inside):
    """For each piece in one part: collects the magnitudes between its layer's bounds, and counts those below them."""
    for piece in range(layers.size * part // parts, layers.size * (part + 1) // parts):
        layer = layers[piece]
        address, low, high = addresses[layer], lows[layer], highs[layer]
        first, last, place = firsts[piece], lasts[piece], rooms[piece]
        whole = first + (last - first) // _BLOCK * _BLOCK
        total = 0
        for start in range(first, whole, _BLOCK):
            count, place = _look(address + 4 * start, _BLOCK, low, high, near, place, rooms[piece + 1])
            total += count
        if whole < last:
            count, place = _look(address + 4 * whole, last - whole, low, high, near, place, rooms[piece + 1])
            total += count
        below[piece], inside[piece] = total, place - rooms[piece]


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
