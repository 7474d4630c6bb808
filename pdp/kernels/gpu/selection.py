"""The kernels of the cut: the two neighbouring magnitudes of every layer's cut, exact, for all layers in each launch.

Magnitudes are compared by their bits read as integers, which have the same order. `find_bounds`, `gather` and `select`
search near the last cut, in one pass over the weights. Layers whose cut is not found there keep `found` = 0 and go
through a radix selection: `count_digits` and `choose_digit` three times, then `find_above` and `finish`. These four
kernels are always launched, but return at once if `missing`, the number of such layers, is 0; so the host never has to
wait for the device to learn it.
"""

from __future__ import annotations

import triton
import triton.language as tl

NARROWEST, WIDEST = 2.0**-9, 2.0**-2  # distance of the search bounds from the expected cut, relative to the last one
BINS = 2048  # number of values that a digit can have
APART = 32  # stride between the counters of two layers: atomic additions to one cache line wait for each other

_BITS: tl.constexpr = tl.constexpr(0x7FFFFFFF)
_INFINITE: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _magnitudes(addresses, layer, number, size, TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """A chunk's magnitudes as integers, and a mask of those that exist in the tensor."""
    pointer = tl.load(addresses + layer).to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    at = number * BLOCK + tl.arange(0, BLOCK)
    # If aligned, loads four elements at a time; the last four may extend past the tensor's end, but stay within the
    # same 16 bytes.
    read = at // 4 * 4 < size if ALIGNED else at < size
    values = tl.load(pointer + at, mask=read, other=0.0).to(tl.float32)
    return values.to(tl.int32, bitcast=True) & _BITS, at < size


@triton.jit
def find_bounds(pruned, sizes, cuts, drift, moved, gaps, low, high, inside, found, missing, prefix, rank, above, layers,
                NARROW: tl.constexpr, WIDE: tl.constexpr, SPACE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Bounds, as bits, for each layer's cut (low > high if nothing is known), and the start values of the later
    kernels.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < layers
    goal = tl.load(pruned + at, mask=there, other=0)
    size = tl.load(sizes + at, mask=there, other=0)
    cut = tl.load(cuts + at, mask=there, other=0.0)
    ahead = cut + tl.load(drift + at, mask=there, other=0.0)
    # Both neighbours of the cut must lie within the bounds; for a cut among the few largest weights they can be far
    # apart.
    reach = tl.maximum(2 * tl.load(moved + at, mask=there, other=0.0), NARROW * cut)
    reach += tl.load(gaps + at, mask=there, other=0.0)
    # False where the last cut is NaN or infinite.
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
    """Counts a chunk's magnitudes below the bounds, and copies those between them to the layer's part of `buffer`."""
    chunk = tl.program_id(0)
    layer, number = tl.load(chunk_layer + chunk), tl.load(chunk_number + chunk)
    low_bits, high_bits, size = tl.load(low + layer), tl.load(high + layer), tl.load(sizes + layer)
    start, end = tl.load(starts + layer), tl.load(starts + layer + 1)
    if (tl.load(found + layer) == 0) & (low_bits <= high_bits):
        bits, there = _magnitudes(addresses, layer, number, size, TYPE, ALIGNED, BLOCK)
        between = there & (bits >= low_bits) & (bits <= high_bits)
        # One scan counts both, in the lower and the upper 16 bits; neither count exceeds 2^15.
        upto = tl.cumsum((there & (bits < low_bits)).to(tl.int32) + (between.to(tl.int32) << 16), 0)
        whole = tl.max(upto, 0)
        tl.store(below + chunk, whole & 0xFFFF)
        if whole >> 16 > 0:
            slots = start + tl.atomic_add(inside + layer * SPACE, whole >> 16) + (upto >> 16) - 1
            tl.store(buffer + slots, bits, mask=between & (slots < end))


@triton.jit
def select(pruned, low, high, below, first_chunk, inside, found, missing, buffer, starts, prefix, taken, ties, cuts,
           drift, moved, gaps, WIDE: tl.constexpr, SPACE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The cut of each layer, selected among the copied magnitudes if both its neighbours are among them."""
    layer = tl.program_id(0)
    count, start = tl.load(inside + layer * SPACE), tl.load(starts + layer)
    least, span = tl.load(low + layer), tl.load(high + layer) - tl.load(low + layer)
    rank = tl.load(pruned + layer) - 1
    for chunk in range(tl.load(first_chunk + layer), tl.load(first_chunk + layer + 1), BLOCK):
        at = chunk + tl.arange(0, BLOCK)
        rank -= tl.sum(tl.load(below + at, mask=at < tl.load(first_chunk + layer + 1), other=0), 0)
    # `_among_many` supports spans below 2^22.
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
    """The value of that rank, the next larger one, how many equal it, and the rank among these; spans below 2^22."""
    bins = tl.arange(0, 2048)
    more = tl.arange(0, 16)
    # Two digits of at most 11 bits each.
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
    """Stores the cut midway between two magnitudes and how far it moved; after a large jump no prediction is made."""
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
    """Counts how often each value of the next digit occurs among the magnitudes that begin with `prefix`."""
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
    """Appends the next digit of the lower neighbour to `prefix`, and resets the counts to zero."""
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
                tl.store(above + layer, whole)  # the upper neighbour has the same value


@triton.jit
def find_above(addresses, chunk_layer, chunk_number, sizes, chunks, prefix, found, missing, above,
               TYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The smallest magnitude above the lower neighbour, where the upper neighbour is not equal to it."""
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
    """Stores the cut of each layer that was selected digit by digit."""
    layer = tl.program_id(0)
    if tl.load(found + layer) == 0:
        _note(layer, tl.load(prefix + layer), tl.load(above + layer), cuts, drift, moved, gaps, WIDE)
