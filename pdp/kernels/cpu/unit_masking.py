"""The kernels called by units.py: the masks of whole units over all tensors of a layer, and sums of squares of rows.

Row u of every tensor belongs to unit u, and its numbers lie side by side in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at, doubles_at
from pdp.kernels.cpu.team import parted

# "reassoc" and "nsz" let the compiler add in an order of its own, as vectors need (the same one for every row), and
# "contract" fuse a product with a sum; infinities and NaN keep their meaning.
_HOW: dict[str, Any] = {"fastmath": {"contract", "reassoc", "nsz"}}


@njit(inline="always")
def _row(address, unit, length):
    return bits_at(address + 4 * unit * length, length).view(np.float32)


@njit(inline="always")
def _product(first, second):
    """The sum of the products of two rows, in float64."""
    total = 0.0
    for i in range(first.size):
        total += np.float64(first[i]) * np.float64(second[i])
    return total


@parted(**_HOW)
def write_masked(part, parts, integers, reals):
    """Writes m_u * tensor for every tensor and the units of one part.

    Integers: how many tensors and units there are, the address of the mask, and of each tensor its address, that of
    what is written, and the length of its rows; each kind of all tensors in turn.
    """
    many, units = integers[0], integers[1]
    factors = bits_at(integers[2], units).view(np.float32)
    for tensor in range(3, 3 + many):
        length = integers[2 * many + tensor]
        for unit in range(units * part // parts, units * (part + 1) // parts):
            source, target = _row(integers[tensor], unit, length), _row(integers[many + tensor], unit, length)
            for i in range(length):
                target[i] = source[i] * factors[unit]


@parted(**_HOW)
def write_gradients(part, parts, integers, reals):
    """Writes the gradients of the tensors that have an address in `slopes`, for the units of one part.

    Those are the tensors that have one in `upstream` or that weigh. A unit's mask has the gradient sum of tensor *
    upstream over all its rows with an address in `upstream`. Times `steep` and a weight, it is the gradient that the
    mask adds to that weight where the tensor `weighs`.

    Integers: how many tensors and units there are, the addresses of mask and `steep`, and of each tensor its address,
    those in `upstream` and in `slopes`, the length of its rows, and whether it weighs; each kind of all in turn.
    """
    many, units = integers[0], integers[1]
    factors, steepness = bits_at(integers[2], units).view(np.float32), bits_at(integers[3], units).view(np.float32)
    for unit in range(units * part // parts, units * (part + 1) // parts):
        total = 0.0
        for tensor in range(4, 4 + many):
            upstream, length = integers[many + tensor], integers[3 * many + tensor]
            if upstream:
                total += _product(_row(integers[tensor], unit, length), _row(upstream, unit, length))
        factor, slope = factors[unit], np.float32(total) * steepness[unit]
        for tensor in range(4, 4 + many):
            upstream, length, weighs = (
                integers[many + tensor],
                integers[3 * many + tensor],
                integers[4 * many + tensor],
            )
            if not integers[2 * many + tensor]:
                continue
            source, target = _row(integers[tensor], unit, length), _row(integers[2 * many + tensor], unit, length)
            if not upstream:
                for i in range(length):
                    target[i] = source[i] * slope
                continue
            given = _row(upstream, unit, length)
            if weighs:
                for i in range(length):
                    target[i] = given[i] * factor + source[i] * slope
            else:
                for i in range(length):
                    target[i] = given[i] * factor


@parted(**_HOW)
def write_squares(part, parts, integers, reals):
    """Writes the sum of squares of each row in one part of every tensor, one tensor after the other.

    Integers: how many tensors there are, the address of the sums (float64), and of each tensor its address, how many
    rows it has and their length; each kind of all tensors in turn.
    """
    many, start = integers[0], 0
    for tensor in range(2, 2 + many):
        rows, length = integers[many + tensor], integers[2 * many + tensor]
        squares = doubles_at(integers[1] + 8 * start, rows)
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            source = _row(integers[tensor], row, length)
            squares[row] = _product(source, source)
        start += rows
