"""The kernels called by units.py: the masks of whole units over all tensors of a layer, and sums of squares of rows.

Row u of every tensor belongs to unit u, and its numbers lie side by side in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at

# "reassoc" and "nsz" let the compiler add in an order of its own, as vectors need (the same one for every row), and
# "contract" fuse a product with a sum; infinities and NaN keep their meaning.
_HOW: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}


@njit(inline="always")
def _row(address, unit, length):
    return bits_at(address + 4 * unit * length, length).view(np.float32)


@njit(**_HOW)
def write_masked(part, parts, tensors, effective, lengths, units, mask):
    """Writes m_u * tensor for every tensor and the units of one part."""
    factors = bits_at(mask, units).view(np.float32)
    for tensor in range(tensors.size):
        for unit in range(units * part // parts, units * (part + 1) // parts):
            length = lengths[tensor]
            source, target = _row(tensors[tensor], unit, length), _row(effective[tensor], unit, length)
            for i in range(length):
                target[i] = source[i] * factors[unit]


@njit(inline="always")
def _product(first, second):
    """The sum of the products of two rows, in float64."""
    total = 0.0
    for i in range(first.size):
        total += np.float64(first[i]) * np.float64(second[i])
    return total


@njit(**_HOW)
def write_gradients(part, parts, tensors, upstream, slopes, lengths, weighs, units, mask, steep):
    """Writes the gradients of the tensors that have an address in `slopes`, for the units of one part.

    Those are the tensors that have one in `upstream` or that weigh. A unit's mask has the gradient sum of tensor *
    upstream over all its rows with an address in `upstream`. Times `steep` and a weight, it is the gradient that the
    mask adds to that weight where the tensor `weighs`.
    """
    factors, steepness = bits_at(mask, units).view(np.float32), bits_at(steep, units).view(np.float32)
    for unit in range(units * part // parts, units * (part + 1) // parts):
        total = 0.0
        for tensor in range(tensors.size):
            if upstream[tensor]:
                length = lengths[tensor]
                total += _product(_row(tensors[tensor], unit, length), _row(upstream[tensor], unit, length))
        factor, slope = factors[unit], np.float32(total) * steepness[unit]
        for tensor in range(tensors.size):
            if not slopes[tensor]:
                continue
            length = lengths[tensor]
            source, target = _row(tensors[tensor], unit, length), _row(slopes[tensor], unit, length)
            if not upstream[tensor]:
                for i in range(length):
                    target[i] = source[i] * slope
                continue
            given = _row(upstream[tensor], unit, length)
            if weighs[tensor]:
                for i in range(length):
                    target[i] = given[i] * factor + source[i] * slope
            else:
                for i in range(length):
                    target[i] = given[i] * factor


@njit(**_HOW)
def write_squares(part, parts, tensors, rows, lengths, starts, squares):
    """Writes the sum of squares of each row in one part of every tensor; a tensor's first goes to its place in
    `starts`.
    """
    for tensor in range(tensors.size):
        for row in range(rows[tensor] * part // parts, rows[tensor] * (part + 1) // parts):
            source = _row(tensors[tensor], row, lengths[tensor])
            squares[starts[tensor] + row] = _product(source, source)
