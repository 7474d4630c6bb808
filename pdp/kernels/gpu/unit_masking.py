"""The kernels that mask whole units; row i of a tensor, its slice along dimension 0, belongs to unit i.

A row is ROW numbers, contiguous in memory. Up to two vectors with one number per row (VECTORS of them) are processed in
the same launch, because a launch for each would cost more. Everything is computed in float32 whatever the dtypes, and
no sum depends on the order in which programs run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _places(row, there, start, ROW, BLOCK: tl.constexpr):
    """The offsets in memory of the next numbers of the rows, and a mask of those that exist."""
    column = start + tl.arange(0, BLOCK)
    return (row * ROW)[:, None] + column[None, :], there[:, None] & (column < ROW)[None, :]


@triton.jit
def _write_scaled(values, scaled, mask, row, there):
    value = tl.load(values + row, mask=there, other=0.0).to(tl.float32)
    tl.store(scaled + row, (value * mask).to(scaled.dtype.element_ty), mask=there)


@triton.jit
def _product(values, gradients, row, there):
    value = tl.load(values + row, mask=there, other=0.0).to(tl.float32)
    return value * tl.load(gradients + row, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _row_sums(weights, gradients, one, one_gradient, two, two_gradient, row, there, ROW, GIVEN: tl.constexpr,
              VECTORS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """What each row's tensors contribute to the gradient of its mask: the sum of w times its gradient."""
    parts = tl.zeros([ROWS, BLOCK], tl.float32)
    if GIVEN:
        for start in range(0, ROW, BLOCK):
            at, inside = _places(row, there, start, ROW, BLOCK)
            weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
            parts += weight * tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(parts, 1)
    if VECTORS > 0:
        total += _product(one, one_gradient, row, there)
    if VECTORS > 1:
        total += _product(two, two_gradient, row, there)
    return total


@triton.jit
def write_masked(masks, weights, effective, one, one_effective, two, two_effective, rows, ROW, VECTORS: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Writes m_u times the elements of unit u."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    mask = tl.load(masks + row, mask=there, other=0.0)
    if VECTORS > 0:
        _write_scaled(one, one_effective, mask, row, there)
    if VECTORS > 1:
        _write_scaled(two, two_effective, mask, row, there)
    for start in range(0, ROW, BLOCK):
        at, inside = _places(row, there, start, ROW, BLOCK)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(effective + at, (weight * mask[:, None]).to(effective.dtype.element_ty), mask=inside)


@triton.jit
def write_sums(weights, gradients, one, one_gradient, two, two_gradient, sums, rows, ROW, GIVEN: tl.constexpr,
               VECTORS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """What these tensors contribute to the gradient of each unit's mask; without GIVEN only the vectors contribute."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    total = _row_sums(weights, gradients, one, one_gradient, two, two_gradient, row, there, ROW, GIVEN, VECTORS, ROWS,
                      BLOCK)  # fmt: skip
    tl.store(sums + row, total, mask=there)


@triton.jit
def write_slopes(masks, steeps, weights, gradients, slopes, one, one_gradient, one_slope, two, two_gradient, two_slope,
                 sums, count, rows, ROW, GIVEN: tl.constexpr, WEIGHS: tl.constexpr, ALONE: tl.constexpr,
                 VECTORS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Writes the gradient times m_u; with WEIGHS also adds the gradient through the mask, w times the unit's slope.

    The slope needs the sums over all of the layer's tensors: `count` rows of `sums`, or with ALONE those of this
    launch.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    mask = tl.load(masks + row, mask=there, other=0.0)
    slope = tl.zeros([ROWS], tl.float32)
    if WEIGHS:
        if ALONE:
            slope += _row_sums(weights, gradients, one, one_gradient, two, two_gradient, row, there, ROW, GIVEN,
                               VECTORS, ROWS, BLOCK)  # fmt: skip
        else:
            for line in range(0, count):
                slope += tl.load(sums + line * rows + row, mask=there, other=0.0)
        slope *= tl.load(steeps + row, mask=there, other=0.0)
    if VECTORS > 0:
        _write_scaled(one_gradient, one_slope, mask, row, there)
    if VECTORS > 1:
        _write_scaled(two_gradient, two_slope, mask, row, there)
    for start in range(0, ROW, BLOCK):
        at, inside = _places(row, there, start, ROW, BLOCK)
        found = tl.zeros([ROWS, BLOCK], tl.float32)
        if GIVEN:
            found += mask[:, None] * tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHS:
            found += slope[:, None] * tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(slopes + at, found.to(slopes.dtype.element_ty), mask=inside)


@triton.jit
def write_squares(addresses, lengths, starts, scales, squares, TYPE: tl.constexpr, ALIGNED: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """The scaled sum of squares of each unit's rows, found at `addresses`; ALIGNED means multiples of 16 bytes.

    Summed in float64 and rounded when stored, so that units with the same weights get the same saliency whatever the
    order of the additions.
    """
    unit = tl.program_id(0)
    parts = tl.zeros([BLOCK], tl.float64)
    for place in range(tl.load(starts + unit), tl.load(starts + unit + 1)):
        row = tl.load(addresses + place).to(tl.pointer_type(TYPE))
        length = tl.load(lengths + place)
        if ALIGNED:
            row, length = tl.multiple_of(row, 16), tl.multiple_of(length, 16)
        for start in range(0, length, BLOCK):
            at = start + tl.arange(0, BLOCK)
            value = tl.load(row + at, mask=at < length, other=0.0).to(tl.float64)
            parts += value * value
    tl.store(squares + unit, tl.sum(parts, 0) * tl.load(scales + unit))
