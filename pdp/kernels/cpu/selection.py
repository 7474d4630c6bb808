"""The kernels called by cuts.py: exact selection of magnitudes by their bits, which sort in the same order."""

from __future__ import annotations

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at, doubles_at, longs_at
from pdp.kernels.cpu.team import parted

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


@njit
def _count(limit, first, last, rooms, near, inside):
    reached = np.int64(0)
    for piece in range(first, last):
        held = near[rooms[piece] : rooms[piece] + inside[piece]]
        for i in range(held.size):
            reached += np.int32(held[i] <= limit)
    return reached


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
def _next(limit, first, last, rooms, near, inside):
    """The smallest collected magnitude above `limit`."""
    smallest = INFINITE
    for piece in range(first, last):
        held = near[rooms[piece] : rooms[piece] + inside[piece]]
        for i in range(held.size):
            smallest = min(smallest, held[i] if held[i] > limit else INFINITE)
    return smallest


@parted()
def gather(part, parts, integers, reals):
    """For each piece in one part: collects the magnitudes between its layer's bounds, and counts those below them.

    Integers: how many pieces, layers and rooms there are; then the addresses of, for each layer, where its numbers are;
    its bounds' bits, low and high; for each piece its layer, its first and its last number, and where its room begins;
    and of what is written: the magnitudes, and for each piece how many are below and how many between the bounds.
    """
    pieces, count, room = integers[0], integers[1], integers[2]
    addresses, lows, highs = longs_at(integers[3], count), bits_at(integers[4], count), bits_at(integers[5], count)
    layers, firsts, lasts = longs_at(integers[6], pieces), longs_at(integers[7], pieces), longs_at(integers[8], pieces)
    rooms, near = longs_at(integers[9], pieces + 1), bits_at(integers[10], room)
    below, inside = longs_at(integers[11], pieces), longs_at(integers[12], pieces)
    for piece in range(layers.size * part // parts, layers.size * (part + 1) // parts):
        layer = layers[piece]
        address, low, high = addresses[layer], lows[layer], highs[layer]
        place = rooms[piece]
        below[piece], place = _sweep(address, firsts[piece], lasts[piece], low, high, near, place, rooms[piece + 1])
        inside[piece] = place - rooms[piece]


@parted()
def select(part, parts, integers, reals):
    """The largest pruned and the smallest kept magnitude of each layer in a part; -1 where one is not between the
    bounds.

    Integers: how many layers, pieces and rooms there are; then the addresses of, for each layer, its rank, its bounds'
    bits, low and high, and its first piece; for each piece where its room begins, the magnitudes, and how many are
    below and how many between the bounds; and of what is written, two for each layer.
    """
    layers, many, room = integers[0], integers[1], integers[2]
    ranks, lows, highs = longs_at(integers[3], layers), bits_at(integers[4], layers), bits_at(integers[5], layers)
    pieces, rooms = longs_at(integers[6], layers + 1), longs_at(integers[7], many + 1)
    near, below, inside = bits_at(integers[8], room), longs_at(integers[9], many), longs_at(integers[10], many)
    under, over = bits_at(integers[11], layers), bits_at(integers[12], layers)
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
def _settle(layer, searched, sizes, ranks, cuts, moved, under, over, address):
    """Writes the layer's cut between its neighbours, and how far it has moved; NaN if it has none after a search.

    Returns whether it has no neighbours yet, and is left as it is.
    """
    cut = under[layer] + (over[layer] - under[layer]) * 0.5
    written = bits_at(address, 1).view(np.float32)
    if 0 < ranks[layer] < sizes[layer]:
        if np.isnan(under[layer]) and not searched:
            return True
        written[0] = cut
    else:
        written[0] = np.inf if ranks[layer] > 0 else -np.inf
    moved[layer] = abs(cut - cuts[layer]) if np.isfinite(cuts[layer]) else np.inf
    cuts[layer] = cut
    return False


@njit(inline="always")
def _search_short(layer, address, first, last, near, sizes, ranks, whole, cuts, moved, under, over):
    """The two neighbours of a layer's cut; NaN where the search between bounds failed or nothing or all is pruned."""
    bounds, inside = np.empty(2, np.int64), np.empty(1, np.int64)
    rank, size, found = ranks[layer], sizes[layer], np.int32(-1)
    bounds[0], bounds[1] = first, last
    farthest = WIDEST * cuts[layer]
    reach = max(MOVES * moved[layer], NARROWEST * cuts[layer])
    bounded = reach <= farthest < np.inf
    for attempt in range(2 if 0 < rank < size and (bounded or whole[layer]) else 0):
        everything = whole[layer] and (attempt == 1 or not bounded)
        low = np.float32(0.0 if everything else max(under[layer] - reach, 0.0)).view(np.int32)
        high = np.float32(np.inf if everything else over[layer] + reach).view(np.int32)
        less, end = _sweep(address, 0, size, low, high, near, bounds[0], bounds[1])
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


@parted()
def find_short(part, parts, integers, reals):
    """Finds and settles the cuts of layers of a single piece each.

    `under` and `over` hold the neighbours of the last cuts, with `cuts` and `moved`, and then those of the new ones. A
    layer in `whole` has room for a search without bounds, which cannot fail. `missed` becomes 1 if a layer has none.

    Integers: how many layers, places and rooms there are; then the addresses of the places of the short ones, where
    their rooms begin, and the rooms; of `missed`; for each layer of how many numbers it has, its rank, whether it is in
    `whole`, `cuts`, `moved`, `under` and `over`; then for each layer where its numbers are, and where its cut goes.
    """
    count, many, room = integers[0], integers[1], integers[2]
    places, rooms, near = longs_at(integers[3], many), longs_at(integers[4], many + 1), bits_at(integers[5], room)
    missed, sizes, ranks = longs_at(integers[6], 1), longs_at(integers[7], count), longs_at(integers[8], count)
    whole, cuts, moved = longs_at(integers[9], count), doubles_at(integers[10], count), doubles_at(integers[11], count)
    under, over = doubles_at(integers[12], count), doubles_at(integers[13], count)
    for number in range(many * part // parts, many * (part + 1) // parts):
        layer = places[number]
        first, last = rooms[number], rooms[number + 1]
        address, written = integers[14 + layer], integers[14 + count + layer]
        _search_short(layer, address, first, last, near, sizes, ranks, whole, cuts, moved, under, over)
        if _settle(layer, False, sizes, ranks, cuts, moved, under, over, written):
            missed[0] = 1


@parted()
def settle(part, parts, integers, reals):
    """`_settle` for the layers at `places`.

    Integers: how many layers and places there are, and whether they were searched; then the addresses of the places, of
    `missed`, and for each layer of how many numbers it has, its rank, `cuts`, `moved`, `under` and `over`; then of each
    layer, where its cut goes.
    """
    count, many, searched = integers[0], integers[1], integers[2] > 0
    places, missed = longs_at(integers[3], many), longs_at(integers[4], 1)
    sizes, ranks = longs_at(integers[5], count), longs_at(integers[6], count)
    cuts, moved = doubles_at(integers[7], count), doubles_at(integers[8], count)
    under, over = doubles_at(integers[9], count), doubles_at(integers[10], count)
    for number in range(many * part // parts, many * (part + 1) // parts):
        layer = places[number]
        if _settle(layer, searched, sizes, ranks, cuts, moved, under, over, integers[11 + layer]):
            missed[0] = 1
