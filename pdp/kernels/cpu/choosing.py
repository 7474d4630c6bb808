"""The kernels called by candidates.py: a weight times its hard mask, and the gradients of it and of candidates' scores.

A weight's rows, one for each output, fill its memory without gaps; so do the masks', in the same order. Gradients round
as those of the definitions do.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at
from pdp.kernels.cpu.team import parted

_ZERO = np.float32(0)
_EXPONENT = np.int32(0x7F800000)  # all of its bits are ones in what is infinite or NaN


@njit(inline="always")
def _bytes_at(address, count):
    return bits_at(address, (count + 3) // 4).view(np.uint8)


@parted()
def find_unfinished(part, parts, integers, reals):
    """Writes 1 where the last address says if this part of the numbers has one that is infinite or NaN.

    Integers: the address of the numbers, how many there are, and that address.
    """
    count = integers[1]
    first, last = count * part // parts, count * (part + 1) // parts
    bits = bits_at(integers[0], count)[first:last]
    unfinished = 0
    for i in range(last - first):
        unfinished |= (bits[i] & _EXPONENT) == _EXPONENT
    if unfinished:
        bits_at(integers[2], 1)[0] = 1


@parted()
def write_kept(part, parts, integers, reals):
    """Writes the weight times its mask, for this part of the numbers.

    Integers: the addresses of weight, mask and what is written, and how many numbers there are.
    """
    weight, keep, effective, count = integers[0], integers[1], integers[2], integers[3]
    first, last = count * part // parts, count * (part + 1) // parts
    source = bits_at(weight, count).view(np.float32)[first:last]
    mask, target = _bytes_at(keep, count)[first:last], bits_at(effective, count).view(np.float32)[first:last]
    for i in range(last - first):
        target[i] = source[i] * np.float32(mask[i])


@njit(inline="always")
def _write_pairs(products, living, made, groups, apart):
    """The sums of each group of four over the six pairs of its members, in the order of `itertools.combinations`."""
    for group in range(groups):
        start, own = group * 4 * apart, group * 6
        a, b = products[start], products[start + apart]
        c, d = products[start + 2 * apart], products[start + 3 * apart]
        made[own] = (a + b) * np.float32(living[own])
        made[own + 1] = (a + c) * np.float32(living[own + 1])
        made[own + 2] = (a + d) * np.float32(living[own + 2])
        made[own + 3] = (b + c) * np.float32(living[own + 3])
        made[own + 4] = (b + d) * np.float32(living[own + 4])
        made[own + 5] = (c + d) * np.float32(living[own + 5])


@parted()
def write_candidate_slopes(part, parts, integers, reals):
    """Writes `upstream` times the mask, and for each living candidate the sum of W * `upstream` over its members.

    A row has `inputs` numbers, `apart` from each other in memory, for each of `inner` places that lie `step` apart.
    Each group of `of` inputs has `many` candidates: the members of candidate c are the numbers from members[c] up to
    members[c + 1] of `members`, after its first many + 1. The scores' gradients are (rows, inner, groups, many).

    Integers, in this order: the addresses of the weight, `upstream`, the mask, which candidates live, both gradients
    and `members`; then rows, inputs, inner, apart, step, many and of.
    """
    weight, upstream, keep, alive = integers[0], integers[1], integers[2], integers[3]
    slope, score_slope, members, rows, inputs = integers[4], integers[5], integers[6], integers[7], integers[8]
    inner, apart, step, many, of = integers[9], integers[10], integers[11], integers[12], integers[13]
    size, groups = inputs * inner, inputs // of
    own = inner * groups * many  # candidates of a row
    source, mask = bits_at(weight, rows * size).view(np.float32), _bytes_at(keep, rows * size)
    arriving, target = bits_at(upstream, rows * size).view(np.float32), bits_at(slope, rows * size).view(np.float32)
    lives, scores = _bytes_at(alive, rows * own), bits_at(score_slope, rows * own).view(np.float32)
    chosen = bits_at(members, many + 1)[many]
    places = bits_at(members, chosen)
    products = np.empty(size, np.float32)
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        low, high = row * size, (row + 1) * size
        given, came, kept, made = source[low:high], arriving[low:high], mask[low:high], target[low:high]
        for i in range(size):
            one = came[i]
            made[i] = one * np.float32(kept[i])
            products[i] = one * given[i]
        for place in range(inner):
            start = row * own + place * groups * many
            living, sums, here = lives[start:], scores[start:], products[place * step :]
            if of == 4 and many == 6:
                _write_pairs(here, living, sums, groups, apart)
                continue
            for group in range(groups):
                for candidate in range(many):
                    whole = _ZERO
                    for at in range(places[candidate], places[candidate + 1]):
                        whole += here[(group * of + places[at]) * apart]
                    index = group * many + candidate
                    sums[index] = whole * np.float32(living[index])
