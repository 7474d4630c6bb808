"""The kernels called by groups.py: cuts inside groups of weights, and m(w) * w with a cut for each group.

Groups are numbered in the memory order of the cuts. A group has `members` weights that lie `inner` numbers apart, and
`inner` groups begin at neighbouring places: together they fill a block of members * inner weights without gaps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.masking import FARTHEST, NOTHING, _bounded, _sigmoid
from pdp.kernels.cpu.memory import bits_at

_HOW: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
_EXACT: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}  # rounds as the definition does

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
def _write_middles(source, cuts, first, last, inner):
    """Writes midway between the second and the third magnitude of each group of four in these blocks, NaN where one is.

    Places are counted from 0 and `inner` has no sign: what may be negative is not vectorized.
    """
    given, made = source[4 * first * inner : 4 * last * inner], cuts[first * inner : last * inner]
    for block in range(last - first):
        start = 4 * block * inner
        for i in range(inner):
            a, b = abs(given[start + i]), abs(given[start + inner + i])
            c, d = abs(given[start + 2 * inner + i]), abs(given[start + 3 * inner + i])
            # The second and third of four: the larger of the lower halves' and the smaller of the upper halves'.
            low, high = _more(_less(a, b), _less(c, d)), _less(_more(a, b), _more(c, d))
            below, above = _less(low, high), _more(low, high)
            cut, whole = below + (above - below) * _HALF, a + b + c + d
            made[block * inner + i] = cut if whole == whole else _NAN


@njit(**_EXACT)
def write_full_cuts(part, parts, weight, cuts, groups, inner, members, free):
    """Writes the cut of every group in this part that loses its `free` smallest weights, 0 < free < members."""
    first, last = groups * part // parts, groups * (part + 1) // parts
    source = bits_at(weight, groups * members).view(np.float32)
    target = bits_at(cuts, groups).view(np.float32)
    if members == 4 and free == 2:
        blocks = groups // inner
        if inner == 1:
            _write_middles(source, target, blocks * part // parts, blocks * (part + 1) // parts, 1)
        else:
            _write_middles(source, target, blocks * part // parts, blocks * (part + 1) // parts, np.uint32(inner))
        return
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


@njit(inline="always")
def _spread(offsets, own, cuts, first, blocks, inner, members, temperature):
    """Writes the offset of each weight of `blocks` blocks from `first` on, in the weights' memory order.

    An offset is -t |t| / tau, within bounds that keep it finite; NaN stays NaN. `own` holds one for each group.
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
    row = np.uint32(inner)
    for block in range(blocks):
        for member in range(members):
            start = (block * members + member) * row
            for i in range(row):
                offsets[start + i] = own[block * row + i]


@njit(**_HOW)
def write_effective(part, parts, weight, effective, cuts, blocks, inner, members, temperature):
    """Writes m(w) * w for this part of the blocks: m = sigmoid((w^2 - t |t|) / tau) with the cut t of its group."""
    size = members * inner
    source = bits_at(weight, blocks * size).view(np.float32)
    target = bits_at(effective, blocks * size).view(np.float32)
    held = bits_at(cuts, blocks * inner).view(np.float32)
    inverse = np.float32(1.0 / temperature)
    most = max(1, _CHUNK // size)
    offsets, own = np.empty(most * size, np.float32), np.empty(most * inner, np.float32)
    last = blocks * (part + 1) // parts
    for block in range(blocks * part // parts, last, most):
        here = min(most, last - block)
        _spread(offsets, own, held, block, here, inner, members, temperature)
        given, made = source[block * size : (block + here) * size], target[block * size : (block + here) * size]
        for i in range(here * size):
            w = given[i]
            mask = _sigmoid(_bounded(offsets[i] + w * w * inverse))
            made[i] = w * (_ZERO if mask <= NOTHING else mask)


@njit(**_HOW)
def write_slope(part, parts, weight, upstream, slope, cuts, blocks, inner, members, temperature):
    """Writes `upstream` times m + 2 w^2 / tau * m (1 - m) for this part of the blocks."""
    size = members * inner
    source = bits_at(weight, blocks * size).view(np.float32)
    arriving = bits_at(upstream, blocks * size).view(np.float32)
    target = bits_at(slope, blocks * size).view(np.float32)
    held = bits_at(cuts, blocks * inner).view(np.float32)
    inverse = np.float32(1.0 / temperature)
    most = max(1, _CHUNK // size)
    offsets, own = np.empty(most * size, np.float32), np.empty(most * inner, np.float32)
    last = blocks * (part + 1) // parts
    for block in range(blocks * part // parts, last, most):
        here = min(most, last - block)
        _spread(offsets, own, held, block, here, inner, members, temperature)
        low, high = block * size, (block + here) * size
        given, came, made = source[low:high], arriving[low:high], target[low:high]
        for i in range(here * size):
            w, offset = given[i], offsets[i]
            z = _bounded(offset + w * w * inverse)
            mask = _sigmoid(z)
            # 2 w^2 / tau = 2 z + 2 t^2 / tau; the bound keeps the slope of an infinite cut at zero.
            made[i] = came[i] * (mask + _TWO * (z - max(offset, FARTHEST)) * (mask * (_ONE - mask)))
