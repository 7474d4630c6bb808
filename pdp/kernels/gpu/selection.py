"""The kernels of the cut: two neighbouring magnitudes of every layer, exact, all layers in one launch each.

Magnitudes are compared as the integers that their bits are, which have the same order. `find_bounds`, `gather` and
`select` look near the last cut, in one pass over the weights. Layers whose cut is not there have `found` = 0 and go
through a radix selection, three times `count_digits` and `choose_digit`, then `find_above` and `finish`; those do
nothing where `missing`, the number of such layers, is 0, so that no host ever waits to know.
"""

from __future__ import annotations

import triton
import triton.language as tl

NARROWEST, WIDEST = 2.0**-9, 2.0**-2  # half of what lies between bounds, relative to the last cut
BINS = 2048  # the most that a digit can be
APART = 32  # numbers from one layer's counter to the next: what lies in one line of the cache is counted in turn

_BITS: tl.constexpr = tl.constexpr(0x7FFFFFFF)
_INFINITE: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _magnitudes(addresses, layer, number, size, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """A chunk's magnitudes as integers, and which of them are there at all."""
    pointer = tl.load(addresses + layer).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    at = number * BLOCK + tl.arange(0, BLOCK)
    # Four at a time, the last of which may lie behind the tensor's end, but in the sixteen bytes that its last is in.
    read = at // 4 * 4 < size if ALIGNED else at < size
    values = tl.load(pointer + at, mask=read, other=0.0).to(tl.float32)
    return values.to(tl.int32, bitcast=True) & _BITS, at < size


@triton.jit
def find_bounds(pruned, sizes, cuts, drift, moved, gaps, low, high, inside, found, missing, prefix, rank, above, layers,
                NARROW: tl.constexpr, WIDE: tl.constexpr, SPACE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Between which bits each layer's cut should lie (low > high: nobody knows), and what follows set to its start."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < layers
    goal = tl.load(pruned + at, mask=there, other=0)
    size = tl.load(sizes + at, mask=there, other=0)
    cut = tl.load(cuts + at, mask=there, other=0.0)
    ahead = cut + tl.load(drift + at, mask=there, other=0.0)
    # Both neighbours of the cut have to lie there, and those of a cut among the largest few lie far apart.
    reach = tl.maximum(2 * tl.load(moved + at, mask=there, other=0.0), NARROW * cut)
    reach += tl.load(gaps + at, mask=there, other=0.0)
    # False where the last cut is no number or endless.
    near = (cut > 0) & (cut < _INFINITE) & (reach <= WIDE * cut)
    low_bits = tl.where(near, ahead - reach, 1.0).to(tl.int32, bitcast=True)
    high_bits = tl.where(near, ahead + reach, 0.0).to(tl.int32, bitcast=True)
    tl.store(low + at, low_bits, mask=there)
    tl.store(high + at, high_bits, mask=there)
    trivial = (goal <= 0) | (goal >= size)
    endless = tl.where(goal <= 0, -_INFINITE, _INFINITE)
    tl.store(cuts + at, tl.where(trivial, endless, cut), mask=there)
    tl.store(found + at, trivial.to(tl.int32), mask=there)
    zero = tl.zeros([BLOCK], tl.int32)
    tl.store(inside + at * SPACE, zero, mask=there)
    tl.store(prefix + at, zero, mask=there)
    tl.store(rank + at, goal - 1, mask=there)
    tl.store(above + at, zero + _BITS, mask=there)
    if tl.program_id(0) == 0:
        tl.store(missing, layers)


@triton.jit
def gather(addresses, chunk_layer, chunk_number, sizes, low, high, below, inside, found, buffer, starts,
           TYPE: tl.constexpr, ALIGNED: tl.constexpr, SPACE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Counts what of a chunk lies below the bounds and copies what lies between to the layer's part of `buffer`."""
    chunk = tl.program_id(0)
    layer, number = tl.load(chunk_layer + chunk), tl.load(chunk_number + chunk)
    low_bits, high_bits, size = tl.load(low + layer), tl.load(high + layer), tl.load(sizes + layer)
    start, end = tl.load(starts + layer), tl.load(starts + layer + 1)
    if (tl.load(found + layer) == 0) & (low_bits <= high_bits):
        bits, there = _magnitudes(addresses, layer, number, size, TYPE, ALIGNED, BLOCK)
        between = there & (bits >= low_bits) & (bits <= high_bits)
        # Both are counted in one scan: no more than 2^15 of either.
        upto = tl.cumsum((there & (bits < low_bits)).to(tl.int32) + (between.to(tl.int32) << 16), 0)
        whole = tl.max(upto, 0)
        tl.store(below + chunk, whole & 0xFFFF)
        if whole >> 16 > 0:
            slots = start + tl.atomic_add(inside + layer * SPACE, whole >> 16) + (upto >> 16) - 1
            tl.store(buffer + slots, bits, mask=between & (slots < end))


@triton.jit
def select(pruned, low, high, below, first_chunk, inside, found, missing, buffer, starts, prefix, taken, ties, cuts,
           drift, moved, gaps, WIDE: tl.constexpr, SPACE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The cut of each layer among what was copied, if both its neighbours are there."""
    layer = tl.program_id(0)
    count, start = tl.load(inside + layer * SPACE), tl.load(starts + layer)
    least, span = tl.load(low + layer), tl.load(high + layer) - tl.load(low + layer)
    rank = tl.load(pruned + layer) - 1
    for chunk in range(tl.load(first_chunk + layer), tl.load(first_chunk + layer + 1), BLOCK):
        at = chunk + tl.arange(0, BLOCK)
        rank -= tl.sum(tl.load(below + at, mask=at < tl.load(first_chunk + layer + 1), other=0), 0)
    # `_among_many` takes spans of less than 2^22.
    held = (span >= 0) & (start + count <= tl.load(starts + layer + 1)) & ((count <= BLOCK) | (span < 4194304))
    done = tl.load(found + layer)
    if (done == 0) & held & (rank >= 0) & (rank + 1 < count):
        lower, upper, equal = least, least, 0
        if count <= BLOCK:
            place = tl.arange(0, BLOCK)
            bits = tl.load(buffer + start + place, mask=place < count, other=0x7FFFFFFF)
            most = least + span
            while lower < most:
                middle = lower + (most - lower) // 2
                enough = tl.sum((bits <= middle).to(tl.int32), 0) > rank
                most = tl.where(enough, middle, most)
                lower = tl.where(enough, lower, middle + 1)
            rank -= tl.sum((bits < lower).to(tl.int32), 0)
            equal = tl.sum((bits == lower).to(tl.int32), 0)
            upper = tl.min(tl.where(bits > lower, bits, 0x7FFFFFFF), 0)
        else:
            lower, upper, equal, rank = _among_many(buffer + start, count, least, span, rank, BLOCK)
        if equal > rank + 1:
            upper = lower
        tl.store(prefix + layer, lower)
        tl.store(taken + layer, rank + 1)
        tl.store(ties + layer, equal)
        _note(layer, lower, upper, cuts, drift, moved, gaps, WIDE)
        tl.store(found + layer, 1)
        done += 1
    if done != 0:
        tl.atomic_add(missing, -1)


@triton.jit
def _among_many(values, count, least, span, rank, BLOCK: tl.constexpr):
    """The value of that rank, the next one, how many have it, and the rank among these; spans of less than 2^22."""
    bins = tl.arange(0, 2048)
    more = tl.arange(0, 16)
    # Two digits of at most 11 bits.
    shift = tl.sum((span >> (11 + more) > 0).to(tl.int32), 0)
    counts = tl.zeros([2048], tl.int32)
    for offset in range(0, count, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        bits = tl.load(values + at, mask=at < count, other=0) - least
        counts += tl.histogram((bits >> shift) & 2047, 2048, mask=at < count)
    upto = tl.cumsum(counts, 0)
    coarse = tl.sum((upto <= rank).to(tl.int32), 0)
    rank -= tl.max(tl.where(upto <= rank, upto, 0), 0)
    counts = tl.zeros([2048], tl.int32)
    beyond = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    for offset in range(0, count, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        bits = tl.load(values + at, mask=at < count, other=0) - least
        there = at < count
        counts += tl.histogram(bits & ((1 << shift) - 1), 2048, mask=there & (bits >> shift == coarse))
        beyond = tl.minimum(beyond, tl.where(there & (bits >> shift > coarse), bits, 0x7FFFFFFF))
    upto = tl.cumsum(counts, 0)
    fine = tl.sum((upto <= rank).to(tl.int32), 0)
    rank -= tl.max(tl.where(upto <= rank, upto, 0), 0)
    equal = tl.max(tl.where(bins == fine, counts, 0), 0)
    following = tl.min(tl.where((bins > fine) & (counts > 0), (coarse << shift) + bins, 0x7FFFFFFF), 0)
    following = tl.minimum(following, tl.min(beyond, 0))
    return least + (coarse << shift) + fine, least + following, equal, rank


@triton.jit
def _note(layer, lower, upper, cuts, drift, moved, gaps, WIDE: tl.constexpr):
    """Stores the cut midway between two magnitudes, and how it moved; a leap says nothing of the next move."""
    below, above = lower.to(tl.float32, bitcast=True), upper.to(tl.float32, bitcast=True)
    cut = below + (above - below) * 0.5
    last = tl.load(cuts + layer)
    move = cut - last
    step = (last > 0) & (last < _INFINITE) & (tl.abs(move) <= WIDE * cut)
    tl.store(drift + layer, tl.where(step, move, 0.0))
    tl.store(moved + layer, tl.where(step, tl.maximum(tl.abs(move), tl.load(moved + layer) * 0.5), 0.0))
    tl.store(gaps + layer, above - below)
    tl.store(cuts + layer, cut)


@triton.jit
def count_digits(addresses, chunk_layer, chunk_number, sizes, chunks, prefix, found, missing, counts,
                 SHIFT: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr,
                 BLOCK: tl.constexpr):  # fmt: skip
    """How often each value of the next digit occurs among the magnitudes that begin with `prefix`."""
    if tl.load(missing) > 0:
        for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
            layer = tl.load(chunk_layer + chunk)
            if tl.load(found + layer) == 0:
                number, size = tl.load(chunk_number + chunk), tl.load(sizes + layer)
                bits, there = _magnitudes(addresses, layer, number, size, TYPE, ALIGNED, BLOCK)
                matches = there & (bits >> SHIFT >> WIDTH == tl.load(prefix + layer))
                seen = tl.histogram(bits >> SHIFT & ((1 << WIDTH) - 1), 2048, mask=matches)
                tl.atomic_add(counts + layer * 2048 + tl.arange(0, 2048), seen, mask=seen > 0)


@triton.jit
def choose_digit(prefix, rank, found, counts, above, taken, ties, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """The next digit of the lower neighbour; leaves the counts at zero."""
    layer = tl.program_id(0)
    if tl.load(found + layer) == 0:
        bins = tl.arange(0, 2048)
        seen = tl.load(counts + layer * 2048 + bins)
        goal = tl.load(rank + layer)
        upto = tl.cumsum(seen, 0)
        digit = tl.sum((upto <= goal).to(tl.int32), 0)
        whole = (tl.load(prefix + layer) << WIDTH) + digit
        tl.store(prefix + layer, whole)
        goal -= tl.max(tl.where(upto <= goal, upto, 0), 0)
        tl.store(rank + layer, goal)
        tl.store(counts + layer * 2048 + bins, tl.zeros([2048], tl.int32))
        if LAST:
            equal = tl.max(tl.where(bins == digit, seen, 0), 0)
            tl.store(taken + layer, goal + 1)
            tl.store(ties + layer, equal)
            if equal > goal + 1:
                tl.store(above + layer, whole)  # the upper neighbour is its equal


@triton.jit
def find_above(addresses, chunk_layer, chunk_number, sizes, chunks, prefix, found, missing, above,
               TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The smallest magnitude above the lower neighbour, where that is not its equal."""
    if tl.load(missing) > 0:
        for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
            layer = tl.load(chunk_layer + chunk)
            lower = tl.load(prefix + layer)
            if (tl.load(found + layer) == 0) & (tl.load(above + layer) != lower):
                number, size = tl.load(chunk_number + chunk), tl.load(sizes + layer)
                bits, there = _magnitudes(addresses, layer, number, size, TYPE, ALIGNED, BLOCK)
                tl.atomic_min(above + layer, tl.min(tl.where(there & (bits > lower), bits, _BITS), 0))


@triton.jit
def finish(prefix, above, found, cuts, drift, moved, gaps, WIDE: tl.constexpr):
    """The cut of each layer that was selected digit by digit."""
    layer = tl.program_id(0)
    if tl.load(found + layer) == 0:
        _note(layer, tl.load(prefix + layer), tl.load(above + layer), cuts, drift, moved, gaps, WIDE)
