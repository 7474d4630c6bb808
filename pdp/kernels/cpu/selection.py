"""The kernels of cuts.py: exact selection of magnitudes by their bits, which stand in the same order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at

_HOW: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}

INFINITE = np.int32(0x7F800000)  # the bits of infinity; greater ones are NaN
_MAGNITUDE = np.int32(0x7FFFFFFF)  # every bit but the sign
_BLOCK = 64  # magnitudes looked at together: few blocks have one between the bounds


@njit(inline="always")
def _look(address, count, low, high, near, place, room):
    """Counts what lies below `low` and writes down what lies between the bounds, as far as there is room."""
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
    """Collects what lies between its layer's bounds in each piece of one part, and counts what lies below."""
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
    """The largest pruned and smallest kept magnitude of a part's layers; -1 where one is not between the bounds."""
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
    """The smallest magnitude that `rank` of those written down reach at most: halves the bounds until one is left."""
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
    """The smallest magnitude above `limit`."""
    smallest = INFINITE
    for piece in range(first, last):
        held = near[rooms[piece] : rooms[piece] + inside[piece]]
        for i in range(held.size):
            smallest = min(smallest, held[i] if held[i] > limit else INFINITE)
    return smallest
