"""The kernels of the N:M cuts. A group is MEMBERS weights, INNER elements apart in memory; FREE of them can be pruned.

The groups of a layer are numbered in memory order. Ties between equal magnitudes, however, are broken in the order of
the weight's dimensions with the inputs last, which `_turn` computes; ROW is the number of groups along the inputs. The
rank of each number in its group is found by comparing it with all the others, because sorting a tile would go through
shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INFINITE: tl.constexpr = tl.constexpr(float("inf"))
_ALL: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _first(at, INNER, MEMBERS: tl.constexpr):
    """The offset in memory of the first member of each group."""
    return at // INNER * (MEMBERS * INNER) + at % INNER


@triton.jit
def _member(weights, first, there, number: tl.constexpr, INNER):
    """The magnitude of the member with this number in each group."""
    return tl.abs(tl.load(weights + first + number * INNER, mask=there, other=0.0).to(tl.float32))


@triton.jit
def _rank(weights, first, there, magnitude, number: tl.constexpr, INNER, MEMBERS: tl.constexpr):
    """How many members of the group are pruned before this one."""
    rank = tl.zeros_like(first)
    for other in tl.static_range(MEMBERS):
        if other < number:
            rank += (_member(weights, first, there, other, INNER) <= magnitude).to(tl.int32)
        elif other > number:
            rank += (_member(weights, first, there, other, INNER) < magnitude).to(tl.int32)
    return rank


@triton.jit
def _write_midway(weights, cuts, at, first, there, gone, INNER, MEMBERS: tl.constexpr):
    """Stores each group's cut, above its `gone` smallest magnitudes; -inf if `gone` is 0."""
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
    """The number of a group in the order of the dimensions with the inputs last, from its number in memory order."""
    outer = at // (ROW * INNER)
    return (outer * INNER + at % INNER) * ROW + at // INNER % ROW


@triton.jit
def write_full_cuts(weights, cuts, groups, INNER, FREE: tl.constexpr, MEMBERS: tl.constexpr, BLOCK: tl.constexpr):
    """The cut of each group when FREE of its weights are pruned."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, there = _first(at, INNER, MEMBERS), at < groups
    _write_midway(weights, cuts, at, first, there, tl.full([BLOCK], FREE, tl.int32), INNER, MEMBERS)


@triton.jit
def write_full_cuts_of_many(table, chunk_layer, chunk_number, layers, cuts, FREE: tl.constexpr, MEMBERS: tl.constexpr,
                            TYPE: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`write_full_cuts` for many layers in one launch.

    `table` is (4, layers): each weight's address, its number of groups, its INNER, and the offset of its cuts in
    `cuts`.
    """
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
    """The FREE smallest magnitudes of each group: first the smallest of all groups, then the second smallest, and so
    on.
    """
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
    """Writes down the positions of the candidates that equal the largest pruned one.

    Only in layers where some but not all of these ties are pruned, and at most ROOM of them exist.
    """
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
    """The position of the last pruned candidate among those that equal the largest pruned magnitude of a layer."""
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
    """The cut of each group when a layer's candidates below `lower` are pruned, and those equal to it up to position
    `last`.
    """
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
