"""The kernels of N:M's cuts: MEMBERS weights that lie INNER numbers apart in memory make a group, of which FREE can go.

A layer's groups are numbered as they lie in memory; among equal magnitudes they count in the order of the weight's
dimensions with the inputs last, which `_turn` finds: ROW groups lie along the inputs. Each number's rank in its group
is found by comparing it with the others, as a sort of a tile would go through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INFINITE: tl.constexpr = tl.constexpr(float("inf"))
_ALL: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _first(at, INNER, MEMBERS: tl.constexpr):
    """Where the first member of each group lies."""
    return at // INNER * (MEMBERS * INNER) + at % INNER


@triton.jit
def _member(weights, first, there, number: tl.constexpr, INNER):
    """The magnitude of one member of each group."""
    return tl.abs(tl.load(weights + first + number * INNER, mask=there, other=0.0).to(tl.float32))


@triton.jit
def _rank(weights, first, there, magnitude, number: tl.constexpr, INNER, MEMBERS: tl.constexpr):
    """How many members of its group go before this one."""
    rank = tl.zeros_like(first)
    for other in tl.static_range(MEMBERS):
        if other < number:
            rank += (_member(weights, first, there, other, INNER) <= magnitude).to(tl.int32)
        elif other > number:
            rank += (_member(weights, first, there, other, INNER) < magnitude).to(tl.int32)
    return rank


@triton.jit
def _write_midway(weights, cuts, at, first, there, gone, INNER, MEMBERS: tl.constexpr):
    """Stores the cut above so many of each group's magnitudes; -inf above none."""
    below = tl.zeros_like(first).to(tl.float32)
    above = below + _INFINITE
    for number in tl.static_range(MEMBERS):
        magnitude = _member(weights, first, there, number, INNER)
        goes = _rank(weights, first, there, magnitude, number, INNER, MEMBERS) < gone
        below = tl.where(goes, tl.maximum(below, magnitude), below)
        above = tl.where(goes, above, tl.minimum(above, magnitude))
    tl.store(cuts + at, tl.where(gone > 0, below + (above - below) * 0.5, -_INFINITE), mask=there)


@triton.jit
def _turn(at, INNER, ROW):
    """Where a group of this place in memory comes in the order of the dimensions with the inputs last."""
    outer = at // (ROW * INNER)
    return (outer * INNER + at % INNER) * ROW + at // INNER % ROW


@triton.jit
def write_full_cuts(weights, cuts, groups, INNER, FREE: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr):
    """The cut of each group where FREE of it go."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, there = _first(at, INNER, MEMBERS), at < groups
    _write_midway(weights, cuts, at, first, there, tl.full([BLOCK], FREE, tl.int32), INNER, MEMBERS)


@triton.jit
def write_full_cuts_of_many(table, chunk_layer, chunk_number, layers, cuts, FREE: tl.constexpr, MEMBERS: tl.constexpr,
                            TYPE: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The same of many layers; `table` is (4, layers): where each weight lies, its groups, INNER, and where cuts go."""
    column = table + tl.load(chunk_layer + tl.program_id(0))
    weights = tl.multiple_of(tl.load(column).to(tl.pointer_type(TYPE)), 16)
    groups = tl.load(column + layers).to(tl.int32)
    at = tl.load(chunk_number + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    there = at < groups
    free = tl.full([BLOCK], FREE, tl.int32)
    own = cuts + tl.load(column + 3 * layers)
    if FLAT:
        _write_midway(weights, own, at, at * MEMBERS, there, free, 1, MEMBERS)
    else:
        inner = tl.load(column + 2 * layers).to(tl.int32)
        _write_midway(weights, own, at, _first(at, inner, MEMBERS), there, free, inner, MEMBERS)


@triton.jit
def write_candidates(weights, candidates, groups, INNER, FREE: tl.constexpr, MEMBERS: tl.constexpr,
                     BLOCK: tl.constexpr):  # fmt: skip
    """The FREE smallest magnitudes of each group: all the smallest, then all the second ones, and so on."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, there = _first(at, INNER, MEMBERS), at < groups
    for place in tl.static_range(FREE):
        smallest = tl.zeros([BLOCK], tl.float32)
        for number in tl.static_range(MEMBERS):
            magnitude = _member(weights, first, there, number, INNER)
            rank = _rank(weights, first, there, magnitude, number, INNER, MEMBERS)
            smallest = tl.where(rank == place, magnitude, smallest)
        tl.store(candidates + place * groups + at, smallest, mask=there)


@triton.jit
def collect_ties(addresses, chunk_layer, chunk_number, sizes, chunks, inner, rows, lower, taken, ties, seen, places,
                 FREE: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The places of the candidates equal to the largest pruned one, in layers where some of a few such go."""
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        layer = tl.load(chunk_layer + chunk)
        equals = tl.load(ties + layer)
        if (tl.load(taken + layer) != equals) & (equals <= ROOM):
            pointer = tl.load(addresses + layer).to(tl.pointer_type(tl.int32))
            size, value = tl.load(sizes + layer), tl.load(lower + layer)
            at = tl.load(chunk_number + chunk) * BLOCK + tl.arange(0, BLOCK)
            equal = tl.load(pointer + at, mask=at < size, other=-1) == value
            groups = size // FREE
            place = _turn(at % groups, tl.load(inner + layer), tl.load(rows + layer)) * FREE + at // groups
            slot = tl.atomic_add(seen + layer + tl.zeros([BLOCK], tl.int32), 1, mask=equal)
            tl.store(places + layer * ROOM + slot, place, mask=equal)


@triton.jit
def find_last_tie(addresses, sizes, inner, rows, lower, taken, ties, places, last, FREE: tl.constexpr,
                  ROOM: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Up to which place among a layer's candidates those equal to the largest pruned one go."""
    layer = tl.program_id(0)
    goal, equals, size = tl.load(taken + layer), tl.load(ties + layer), tl.load(sizes + layer)
    if goal == equals:
        tl.store(last + layer, _ALL)
    elif equals <= ROOM:
        slot = tl.arange(0, ROOM)
        place = tl.load(places + layer * ROOM + slot, mask=slot < equals, other=_ALL)
        least = tl.zeros_like(goal)
        most = size
        while least < most:
            middle = least + (most - least) // 2
            enough = tl.sum((place <= middle).to(tl.int32), 0) >= goal
            most = tl.where(enough, middle, most)
            least = tl.where(enough, least, middle + 1)
        tl.store(last + layer, least)
    else:
        candidates = tl.load(addresses + layer).to(tl.pointer_type(tl.int32))
        value, groups = tl.load(lower + layer), size // FREE
        INNER, ROW = tl.load(inner + layer), tl.load(rows + layer)
        found = -1
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            there = place < size
            turn = place // FREE
            line = turn // ROW
            group = (line // INNER * ROW + turn % ROW) * INNER + line % INNER
            bits = tl.load(candidates + place % FREE * groups + group, mask=there, other=-1)
            equal = (bits == value).to(tl.int32)
            upto = tl.cumsum(equal, 0)
            found = tl.maximum(found, tl.max(tl.where((equal > 0) & (upto <= goal), place, -1), 0))
            goal -= tl.sum(equal, 0)
        tl.store(last + layer, found)


@triton.jit
def write_partial_cuts(weights, cuts, groups, INNER, ROW, lower, last, layer, FREE: tl.constexpr,
                       MEMBERS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The cut of each group where a layer's candidates up to `lower` go, of its equals those up to the place `last`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, there = _first(at, INNER, MEMBERS), at < groups
    value, place = tl.load(lower + layer).to(tl.float32, bitcast=True), tl.load(last + layer)
    turn = _turn(at, INNER, ROW)
    gone = tl.zeros([BLOCK], tl.int32)
    for number in tl.static_range(MEMBERS):
        magnitude = _member(weights, first, there, number, INNER)
        rank = _rank(weights, first, there, magnitude, number, INNER, MEMBERS)
        goes = (magnitude < value) | ((magnitude == value) & (turn * FREE + rank <= place))
        gone += ((rank < FREE) & goes).to(tl.int32)
    _write_midway(weights, cuts, at, first, there, gone, INNER, MEMBERS)
