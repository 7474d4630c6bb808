"""The kernels called by masks.py: m(w) * w and its gradient in one pass each; the mask never goes to memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at, doubles_at
from pdp.kernels.cpu.team import parted, share_of

# Of the fast-math options only "contract" is on: the compiler may fuse a product with a sum, but infinities and NaN
# keep their meaning.
_HOW: dict[str, Any] = {"fastmath": {"contract"}}

_LARGEST = np.float64(np.finfo(np.float32).max) / 4  # bound of the offset that keeps it finite
_LINE = 16  # numbers in a line of the processor's cache
_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
# The constants of pdp.masks.soft, repeated because a cached kernel would not notice a change in another file; a test
# holds them equal.
SATURATED, NOTHING, FARTHEST = np.float32(60.0), np.float32(1e-26), np.float32(-1e20)
# Coefficients of exp(r) for |r| <= ln(2) / 2, and ln(2) in two parts, from the Cephes library's expf.
_E0, _E1, _E2, _E3, _E4 = (
    np.float32(value) for value in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
)
_PER_LN2, _LN2_HIGH, _LN2_LOW = (np.float32(value) for value in (1.44269504088896341, 0.693359375, -2.12194440e-4))
_BIAS, _FRACTION = np.int32(127), np.int32(23)  # of a float32: exponent bias and number of fraction bits


@njit(inline="always")
def _sigmoid(z):
    """1 / (1 + exp(-z)) for |z| <= 60, without a function call, so that the compiler can vectorize it."""
    steps = np.floor(_HALF - z * _PER_LN2)
    rest = -z - steps * _LN2_HIGH - steps * _LN2_LOW
    power = (((_E0 * rest + _E1) * rest + _E2) * rest + _E3) * rest + _E4
    power = (power * rest + _HALF) * (rest * rest) + rest + _ONE
    scale = np.int32((np.int32(steps) + _BIAS) << _FRACTION)
    return _ONE / (_ONE + power * scale.view(np.float32))


@njit(inline="always")
def _bounded(z):
    # Comparisons written so that NaN stays NaN.
    z = -SATURATED if z < -SATURATED else z
    return SATURATED if z > SATURATED else z


@njit(inline="always")
def _write_effective(weight, effective, first, last, offset, inverse):
    """Writes m(w) * w for the numbers from `first` to `last`: m = sigmoid(offset + w^2 * inverse)."""
    source = bits_at(weight + 4 * first, last - first).view(np.float32)
    target = bits_at(effective + 4 * first, last - first).view(np.float32)
    offset, inverse = np.float32(offset), np.float32(inverse)
    for i in range(last - first):
        w = source[i]
        mask = _sigmoid(_bounded(offset + w * w * inverse))
        target[i] = w * (_ZERO if mask <= NOTHING else mask)


@njit(inline="always")
def _write_slope(weight, upstream, slope, first, last, offset, inverse):
    """Writes `upstream` times m + 2 w^2 / tau * m (1 - m) for the numbers from `first` to `last`."""
    source = bits_at(weight + 4 * first, last - first).view(np.float32)
    given = bits_at(upstream + 4 * first, last - first).view(np.float32)
    target = bits_at(slope + 4 * first, last - first).view(np.float32)
    offset, inverse = np.float32(offset), np.float32(inverse)
    # With an infinite cut the slope is zero; without this bound, a clamped z times infinity would not give zero.
    subtracted = max(offset, FARTHEST)
    for i in range(last - first):
        w = source[i]
        z = _bounded(offset + w * w * inverse)
        mask = _sigmoid(z)
        # 2 w^2 / tau = 2 z + 2 t^2 / tau
        target[i] = given[i] * (mask + _TWO * (z - subtracted) * (mask * (_ONE - mask)))


@njit(inline="always")
def _numbers(cut, temperature):
    """The offset -t |t| / tau (t with its sign), within bounds that keep it finite, and 1 / tau; NaN stays NaN."""
    t = np.float64(cut)
    offset = t * abs(t) / -temperature
    offset = _LARGEST if offset > _LARGEST else offset
    return -_LARGEST if offset < -_LARGEST else offset, 1.0 / temperature


@parted(**_HOW)
def write_effective(part, parts, integers, reals):
    """m(w) * w of many tensors: m = sigmoid(offset + w^2 * inverse), and the numbers that `write_slope` needs.

    Integers: how many tensors and how many numbers they have, and the address of the offsets and then inverses
    (float64) that are written; then of each tensor its address, that of what is written, its size, and the address of
    its cut; each kind of all tensors in turn, like the reals: tau.
    """
    many, total, before = integers[0], integers[1], 0
    numbers = doubles_at(integers[2], 2 * many)
    for i in range(many):
        size = integers[3 + 2 * many + i]
        first, last = share_of(part, parts, total, before, size, _LINE)
        if first < last:
            cut = bits_at(integers[3 + 3 * many + i], 1).view(np.float32)[0]
            offset, inverse = _numbers(cut, reals[i])
            _write_effective(integers[3 + i], integers[3 + many + i], first, last, offset, inverse)
            if first == 0:
                numbers[i], numbers[many + i] = offset, inverse
        before += size


@parted(**_HOW)
def write_slope(part, parts, integers, reals):
    """`upstream` times m + 2 w^2 / tau * m (1 - m) of many tensors.

    Integers: how many tensors and how many numbers there are; then of each tensor its address, those of `upstream` and
    of what is written, and its size; each kind of all tensors in turn, like the reals: offset and inverse.
    """
    many, total, before = integers[0], integers[1], 0
    for i in range(many):
        weight, upstream, slope = integers[2 + i], integers[2 + many + i], integers[2 + 2 * many + i]
        size = integers[2 + 3 * many + i]
        first, last = share_of(part, parts, total, before, size, _LINE)
        if first < last:
            _write_slope(weight, upstream, slope, first, last, reals[i], reals[many + i])
        before += size
