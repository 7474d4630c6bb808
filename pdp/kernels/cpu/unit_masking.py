"""The kernels called by units.py: the masks of whole units over all tensors of a layer, and sums of squares of rows.

Row u of every tensor belongs to unit u, and its numbers lie side by side in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pdp.kernels.cpu.memory import bits_at, doubles_at
from pdp.kernels.cpu.team import parted, share_of

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


@njit(inline="always")
def _write_unit(unit, integers, first, last, many, factor, steepness):
    """The gradients of one unit of a layer; its tensors are those from `first` to `last` in `integers`."""
    total = 0.0
    for tensor in range(first, last):
        upstream, length = integers[many + tensor], integers[3 * many + tensor]
        if upstream:
            total += _product(_row(integers[tensor], unit, length), _row(upstream, unit, length))
    slope = np.float32(total) * steepness
    for tensor in range(first, last):
        upstream, written, length = integers[many + tensor], integers[2 * many + tensor], integers[3 * many + tensor]
        if not written:
            continue
        source, target = _row(integers[tensor], unit, length), _row(written, unit, length)
        if not upstream:
            for i in range(length):
                target[i] = source[i] * slope
            continue
        given = _row(upstream, unit, length)
        if integers[4 * many + tensor]:
            for i in range(length):
                target[i] = given[i] * factor + source[i] * slope
        else:
            for i in range(length):
                target[i] = given[i] * factor


@parted(**_HOW)
def write_masked(part, parts, integers, reals):
    """m_u * tensor for every tensor.

    Integers: how many tensors and how many numbers there are; then of each tensor its address, that of what is written
    and that of its units' masks, how many units it has, and the length of their rows; each kind of all in turn.
    """
    many, total, before = integers[0], integers[1], 0
    for tensor in range(2, 2 + many):
        units, length = integers[3 * many + tensor], integers[4 * many + tensor]
        first, last = share_of(part, parts, total, before, units * length, length)
        before += units * length
        factors = bits_at(integers[2 * many + tensor], units).view(np.float32)
        for unit in range(first // length, last // length):
            source, target = _row(integers[tensor], unit, length), _row(integers[many + tensor], unit, length)
            for i in range(length):
                target[i] = source[i] * factors[unit]


@parted(**_HOW)
def write_gradients(part, parts, integers, reals):
    """Writes the gradients of the tensors of many layers that have an address in `slopes`.

    Those are the tensors that have one in `upstream` or that weigh. A unit's mask has the gradient sum of tensor *
    upstream over all its rows with an address in `upstream`. Times `steep` and a weight, it is the gradient that the
    mask adds to that weight where the tensor `weighs`.

    Integers: how many layers, tensors and numbers there are; of each layer the addresses of its masks and of `steep`,
    how many units and tensors it has, and the length of a unit's rows together; then of each tensor, one layer's after
    the other's, its address, those in `upstream` and in `slopes`, the length of its rows, and whether it weighs.
    """
    layers, many, total = integers[0], integers[1], integers[2]
    before, tensors = 0, 3 + 5 * layers
    for layer in range(3, 3 + layers):
        units, own, whole = integers[2 * layers + layer], integers[3 * layers + layer], integers[4 * layers + layer]
        first, last = share_of(part, parts, total, before, units * whole, whole)
        before += units * whole
        factors = bits_at(integers[layer], units).view(np.float32)
        steepness = bits_at(integers[layers + layer], units).view(np.float32)
        for unit in range(first // whole, last // whole):
            _write_unit(unit, integers, tensors, tensors + own, many, factors[unit], steepness[unit])
        tensors += own


@parted(**_HOW)
def write_squares(part, parts, integers, reals):
    """Writes the sum of squares of each row of every tensor, one tensor after the other.

    Integers: how many tensors and how many numbers there are, and the address of the sums (float64); then of each
    tensor its address, how many rows it has and their length; each kind of all tensors in turn.
    """
    many, total, before, start = integers[0], integers[1], 0, 0
    for tensor in range(3, 3 + many):
        rows, length = integers[many + tensor], integers[2 * many + tensor]
        squares = doubles_at(integers[2] + 8 * start, rows)
        start += rows
        if not length:
            squares[:] = 0.0
            continue
        first, last = share_of(part, parts, total, before, rows * length, length)
        before += rows * length
        for row in range(first // length, last // length):
            source = _row(integers[tensor], row, length)
            squares[row] = _product(source, source)
