"""The kernels of N:M's cuts: MEMBERS weights that lie INNER numbers apart in memory make a group.

A layer's groups are numbered as they lie in memory; among equal magnitudes they count in the order of the weight's
dimensions with the inputs last, which `_turn` finds: ROW groups lie along the inputs. WIDTH is MEMBERS or the next
power of two, FREE how many of a group can go at most.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INFINITE: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _ordered(weights, at, there, INNER, MEMBERS: tl.constexpr, WIDTH: tl.constexpr):
    """Each group's magnitudes from the smallest up."""
    first = at // INNER * (MEMBERS * INNER) + at % INNER
    member = tl.arange(0, WIDTH)
    places = first[:, None] + member[None, :] * INNER
    inside = there[:, None] & (member < MEMBERS)[None, :]
    return tl.sort(tl.abs(tl.load(weights + places, mask=inside, other=_INFINITE).to(tl.float32)), dim=1)


@triton.jit
def _midway(ordered, gone, WIDTH: tl.constexpr):
    """The cut above so many of each group's magnitudes; -inf above none."""
    member = tl.arange(0, WIDTH)[None, :]
    below = tl.max(tl.where(member < gone[:, None], ordered, 0.0), 1)
    above = tl.min(tl.where(member >= gone[:, None], ordered, _INFINITE), 1)
    return tl.where(gone > 0, below + (above - below) * 0.5, -_INFINITE)


@triton.jit
def _turn(at, INNER, ROW):
    """Where a group of this place in memory comes in the order of the dimensions with the inputs last."""
    outer = at // (ROW * INNER)
    return (outer * INNER + at % INNER) * ROW + at // INNER % ROW


@triton.jit
def write_full_cuts(weights, cuts, groups, INNER, FREE: tl.constexpr, MEMBERS: tl.constexpr, WIDTH: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """The cut of each group where FREE of it go."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < groups
    ordered = _ordered(weights, at, there, INNER, MEMBERS, WIDTH)
    tl.store(cuts + at, _midway(ordered, tl.full([BLOCK], FREE, tl.int32), WIDTH), mask=there)


@triton.jit
def write_candidates(weights, candidates, groups, INNER, FREE: tl.constexpr, MEMBERS: tl.constexpr,
                     WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The FREE smallest magnitudes of each group: all the smallest, then all the second ones, and so on."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < groups
    ordered = _ordered(weights, at, there, INNER, MEMBERS, WIDTH)
    member = tl.arange(0, WIDTH)[None, :]
    tl.store(candidates + member * groups + at[:, None], ordered, mask=there[:, None] & (member < FREE))


@triton.jit
def find_last_tie(addresses, sizes, inner, rows, lower, taken, ties, last, FREE: tl.constexpr, BLOCK: tl.constexpr):
    """Up to which place among a layer's candidates those equal to the largest pruned one go; seldom has to look."""
    layer = tl.program_id(0)
    goal = tl.load(taken + layer)
    if goal == tl.load(ties + layer):
        tl.store(last + layer, 0x7FFFFFFF)
    else:
        candidates = tl.load(addresses + layer).to(tl.pointer_type(tl.float32))
        size, value = tl.load(sizes + layer), tl.load(lower + layer)
        groups, INNER, ROW = size // FREE, tl.load(inner + layer), tl.load(rows + layer)
        found = -1
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            there = place < size
            turn = place // FREE
            column = turn % ROW
            line = turn // ROW
            group = (line // INNER * ROW + column) * INNER + line % INNER
            bits = tl.load(candidates + place % FREE * groups + group, mask=there, other=0.0).to(tl.int32, bitcast=True)
            equal = (there & (bits == value)).to(tl.int32)
            upto = tl.cumsum(equal, 0)
            found = tl.maximum(found, tl.max(tl.where((equal > 0) & (upto <= goal), place, -1), 0))
            goal -= tl.sum(equal, 0)
        tl.store(last + layer, found)


@triton.jit
def write_partial_cuts(weights, cuts, groups, INNER, ROW, lower, last, layer, FREE: tl.constexpr,
                       MEMBERS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The cut of each group where a layer's candidates up to `lower` go, of its equals those up to the place `last`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < groups
    ordered = _ordered(weights, at, there, INNER, MEMBERS, WIDTH)
    value = tl.load(lower + layer).to(tl.float32, bitcast=True)
    member = tl.arange(0, WIDTH)[None, :]
    early = _turn(at, INNER, ROW)[:, None] * FREE + member <= tl.load(last + layer)
    gone = (member < FREE) & ((ordered < value) | ((ordered == value) & early))
    tl.store(cuts + at, _midway(ordered, tl.sum(gone.to(tl.int32), 1), WIDTH), mask=there)
