"""The kernels called by groups.py: cuts inside groups of weights, and m(w) * w with a cut for each group.

Groups are numbered in the memory order of the cuts. A group has `members` weights that lie `inner` numbers apart, and
`inner` groups begin at neighbouring places: together they fill a block of members * inner weights without gaps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.masking import FARTHEST, NOTHING, _bounded, _sigmoid
from pdp.kernels.cpu.memory import WIDE, bits_at, copy_wide
from pdp.kernels.cpu.team import parted, share_of

_HOW: dict[str, Any] = {"fastmath": {"contract"}}

_ZERO, _HALF, _ONE, _TWO, _NAN = (np.float32(value) for value in (0, 0.5, 1, 2, np.nan))
_LARGEST = np.float64(np.finfo(np.float32).max) / 4  # bound of the offset that keeps it finite
_CHUNK = 4096  # weights whose offsets are written out at a time


@njit(inline="always")
def _less(a, b):
    return a if a < b else b  # unlike min(), an instruction of vectors


@njit(inline="always")
def _more(a, b):
    return b if a < b else a


@njit(inline="always")
def _middle(a, b, c, d):
    """Midway between the second and the third of four magnitudes, NaN where one is."""
    # The second and third of four: the larger of the lower halves' and the smaller of the upper halves'.
    low, high = _more(_less(a, b), _less(c, d)), _less(_more(a, b), _more(c, d))
    below, above = _less(low, high), _more(low, high)
    cut, whole = below + (above - below) * _HALF, a + b + c + d
    return cut if whole == whole else _NAN


@njit(inline="always")
def _write_middles(given, made, blocks, inner):
    """Writes `_middle` of every group of four in these blocks.

    Places are counted from 0 and `inner` has no sign: what may be negative is not vectorized.
    """
    for block in range(blocks):
        own, start = block * inner, 4 * block * inner
        for i in range(inner):
            a, b = abs(given[start + i]), abs(given[start + inner + i])
            c, d = abs(given[start + 2 * inner + i]), abs(given[start + 3 * inner + i])
            made[own + i] = _middle(a, b, c, d)


@njit(inline="always")
def _write_short_middles(given, made, blocks, inner):
    """`_write_middles` for runs of fewer than WIDE numbers: first brings each member of all groups side by side."""
    most = _CHUNK // 4 // inner
    room = most * inner + WIDE
    rows = np.empty(4 * room, np.float32)
    first, second, third, fourth = rows[:room], rows[room:], rows[2 * room :], rows[3 * room :]
    for block in range(0, blocks, most):
        here = min(most, blocks - block)
        for i in range(here):
            for member in range(4):
                start, own = (4 * (block + i) + member) * inner, member * room + i * inner
                if block + i < blocks - 4:  # what is copied in excess, the next run overwrites
                    copy_wide(rows.ctypes.data + 4 * own, given.ctypes.data + 4 * start)  # type: ignore[call-arg]
                else:  # the weight may end here
                    rows[own : own + inner] = given[start : start + inner]
        cuts = made[block * inner :]
        for i in range(here * inner):
            cuts[i] = _middle(abs(first[i]), abs(second[i]), abs(third[i]), abs(fourth[i]))


@njit(inline="always")
def _write_cuts(source, target, first, last, inner, members, free):
    """The cut of each group from `first` to `last`: midway between its last pruned and its next magnitude."""
    least = np.empty(members, np.float32)  # the smallest so far, in order
    for group in range(first, last):
        start = group // inner * members * inner + group % inner
        whole = _ZERO
        for member in range(members):
            value = abs(source[start + member * inner])
            whole += value
            place = min(member, free + 1)
            if place > free and value >= least[free]:
                continue
            place = min(place, free)
            while place > 0 and least[place - 1] > value:
                least[place] = least[place - 1]
                place -= 1
            least[place] = value
        cut = least[free - 1] + (least[free] - least[free - 1]) * _HALF
        target[group] = cut if whole == whole else _NAN


@parted()  # rounds as the definition does
def write_full_cuts(part, parts, integers, reals):
    """Writes the cut of every group that loses its `free` smallest weights, 0 < free < members, of many tensors.

    Integers: how many tensors and how many weights there are, members and free; then of each tensor its address, that
    of its cuts, how many blocks it has, and inner; each kind of all tensors in turn.
    """
    many, total, members, free, before = integers[0], integers[1], integers[2], integers[3], 0
    for i in range(4, 4 + many):
        blocks, inner = integers[2 * many + i], integers[3 * many + i]
        size = members * inner
        first, last = share_of(part, parts, total, before, blocks * size, size)
        before += blocks * size
        if first >= last:
            continue
        first, last = first // size, last // size
        given = bits_at(integers[i] + 4 * first * size, (last - first) * size).view(np.float32)
        made = bits_at(integers[many + i] + 4 * first * inner, (last - first) * inner).view(np.float32)
        if members != 4 or free != 2:
            _write_cuts(given, made, 0, (last - first) * inner, inner, members, free)
        elif inner == 1:
            _write_middles(given, made, last - first, 1)
        elif inner < WIDE:
            _write_short_middles(given, made, last - first, inner)
        else:
            _write_middles(given, made, last - first, np.uint32(inner))


@njit(inline="always")
def _spread(offsets, own, cuts, first, blocks, inner, members, temperature):
    """Writes the offset of each weight of `blocks` blocks from `first` on, in the weights' memory order.

    An offset is -t |t| / tau, within bounds that keep it finite; NaN stays NaN. `own` holds one for each group. Both
    have room for WIDE numbers more.
    """
    inverse, held = -1.0 / temperature, cuts[first * inner : (first + blocks) * inner]
    for i in range(blocks * inner):
        t = np.float64(held[i])
        value = t * abs(t) * inverse
        value = _LARGEST if value > _LARGEST else value
        own[i] = np.float32(-_LARGEST if value < -_LARGEST else value)
    if inner == 1 and members == 4:
        for i in range(blocks):
            offset = own[i]
            offsets[4 * i], offsets[4 * i + 1], offsets[4 * i + 2], offsets[4 * i + 3] = offset, offset, offset, offset
        return
    if inner == 1:
        for i in range(blocks):
            for member in range(members):
                offsets[i * members + member] = own[i]
        return
    if inner < WIDE:
        for block in range(blocks):
            for member in range(members):
                start = (block * members + member) * inner
                # What is copied in excess, the next run overwrites.
                copy_wide(offsets.ctypes.data + 4 * start, own.ctypes.data + 4 * block * inner)  # type: ignore[call-arg]
        return
    row = np.uint32(inner)
    for block in range(blocks):
        for member in range(members):
            start = (block * members + member) * row
            for i in range(row):
                offsets[start + i] = own[block * row + i]


@njit(inline="always")
def _write_effective(source, target, held, blocks, inner, members, temperature):
    size, inverse = members * inner, np.float32(1.0 / temperature)
    most = max(1, _CHUNK // size)
    offsets, own = np.empty(most * size + WIDE, np.float32), np.empty(most * inner + WIDE, np.float32)
    for block in range(0, blocks, most):
        here = min(most, blocks - block)
        _spread(offsets, own, held, block, here, inner, members, temperature)
        given, made = source[block * size : (block + here) * size], target[block * size : (block + here) * size]
        for i in range(here * size):
            w = given[i]
            mask = _sigmoid(_bounded(offsets[i] + w * w * inverse))
            made[i] = w * (_ZERO if mask <= NOTHING else mask)


@njit(inline="always")
def _write_slope(source, arriving, target, held, blocks, inner, members, temperature):
    size, inverse = members * inner, np.float32(1.0 / temperature)
    most = max(1, _CHUNK // size)
    offsets, own = np.empty(most * size + WIDE, np.float32), np.empty(most * inner + WIDE, np.float32)
    for block in range(0, blocks, most):
        here = min(most, blocks - block)
        _spread(offsets, own, held, block, here, inner, members, temperature)
        low, high = block * size, (block + here) * size
        given, came, made = source[low:high], arriving[low:high], target[low:high]
        for i in range(here * size):
            w, offset = given[i], offsets[i]
            z = _bounded(offset + w * w * inverse)
            mask = _sigmoid(z)
            # 2 w^2 / tau = 2 z + 2 t^2 / tau; the bound keeps the slope of an infinite cut at zero.
            made[i] = came[i] * (mask + _TWO * (z - max(offset, FARTHEST)) * (mask * (_ONE - mask)))


@parted(**_HOW)
def write_effective(part, parts, integers, reals):
    """Writes m(w) * w of many tensors: m = sigmoid((w^2 - t |t|) / tau) with the cut t of a weight's group.

    Integers: how many tensors and how many weights there are, and members; then of each tensor its address, that of
    what is written and that of its cuts, how many blocks it has, and inner; each kind of all tensors in turn. Reals:
    the tau of each.
    """
    many, total, members, before = integers[0], integers[1], integers[2], 0
    for i in range(many):
        at = 3 + i
        blocks, inner = integers[at + 3 * many], integers[at + 4 * many]
        size = members * inner
        first, last = share_of(part, parts, total, before, blocks * size, size)
        before += blocks * size
        if first < last:
            source = bits_at(integers[at] + 4 * first, last - first).view(np.float32)
            target = bits_at(integers[at + many] + 4 * first, last - first).view(np.float32)
            held = bits_at(integers[at + 2 * many] + 4 * (first // members), (last - first) // members)
            taken = (last - first) // size
            _write_effective(source, target, held.view(np.float32), taken, inner, members, reals[i])


@parted(**_HOW)
def write_slope(part, parts, integers, reals):
    """Writes `upstream` times m + 2 w^2 / tau * m (1 - m) of many tensors.

    As for `write_effective`, with the addresses of `upstream` after those of the tensors.
    """
    many, total, members, before = integers[0], integers[1], integers[2], 0
    for i in range(many):
        at = 3 + i
        blocks, inner = integers[at + 4 * many], integers[at + 5 * many]
        size = members * inner
        first, last = share_of(part, parts, total, before, blocks * size, size)
        before += blocks * size
        if first < last:
            source = bits_at(integers[at] + 4 * first, last - first).view(np.float32)
            arriving = bits_at(integers[at + many] + 4 * first, last - first).view(np.float32)
            target = bits_at(integers[at + 2 * many] + 4 * first, last - first).view(np.float32)
            held = bits_at(integers[at + 3 * many] + 4 * (first // members), (last - first) // members)
            taken = (last - first) // size
            _write_slope(source, arriving, target, held.view(np.float32), taken, inner, members, reals[i])
