"""The kernels that mask whole units where a unit is a column of a ROWS x COLUMNS matrix that is contiguous in memory.

The weight of Hugging Face's `Conv1D` has this layout, (inputs, outputs). At most one vector with one number per column
is processed along with it. A program handles LEFT columns and PER rows of them. Everything is computed in float32, and
no sum depends on the order in which programs run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(columns, LEFT: tl.constexpr):
    """The columns that this program handles, a mask of those that exist, and the part of the rows."""
    tiles = tl.cdiv(columns, LEFT)
    column = tl.program_id(0) % tiles * LEFT + tl.arange(0, LEFT)
    return column, column < columns, tl.program_id(0) // tiles


@triton.jit
def _numbers(row, column, there, rows, columns, BLOCK: tl.constexpr):
    """The offsets in memory of the next rows of these columns, and a mask of those that exist."""
    rows_here = row + tl.arange(0, BLOCK)
    return rows_here[:, None] * columns + column[None, :], (rows_here < rows)[:, None] & there[None, :]


@triton.jit
def write_masked_columns(masks, weights, effective, one, one_effective, rows, columns, PER, VECTOR: tl.constexpr,
                         LEFT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Writes m_u times the elements of unit u."""
    column, there, part = _place(columns, LEFT)
    mask = tl.load(masks + column, mask=there, other=0.0)
    if VECTOR:
        first = there & (part == 0)
        value = tl.load(one + column, mask=first, other=0.0).to(tl.float32)
        tl.store(one_effective + column, (value * mask).to(one_effective.dtype.element_ty), mask=first)
    for row in range(part * PER, tl.minimum(part * PER + PER, rows), BLOCK):
        at, inside = _numbers(row, column, there, rows, columns, BLOCK)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(effective + at, (weight * mask[None, :]).to(effective.dtype.element_ty), mask=inside)


@triton.jit
def write_column_sums(weights, gradients, one, one_gradient, sums, rows, columns, PER, VECTOR: tl.constexpr,
                      LEFT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """What these tensors contribute to the gradient of each column's mask: a row of `sums` per part of the rows."""
    column, there, part = _place(columns, LEFT)
    products = tl.zeros([BLOCK, LEFT], tl.float32)
    for row in range(part * PER, tl.minimum(part * PER + PER, rows), BLOCK):
        at, inside = _numbers(row, column, there, rows, columns, BLOCK)
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        products += weight * tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(products, 0)
    if VECTOR:
        first = there & (part == 0)
        value = tl.load(one + column, mask=first, other=0.0).to(tl.float32)
        total += value * tl.load(one_gradient + column, mask=first, other=0.0).to(tl.float32)
    tl.store(sums + part * columns + column, total, mask=there)


@triton.jit
def write_column_slopes(masks, steeps, sums, weights, gradients, slopes, one, one_gradient, one_slope, rows, columns,
                        PER, GIVEN: tl.constexpr, WEIGHS: tl.constexpr, VECTOR: tl.constexpr, LEFT: tl.constexpr,
                        BLOCK: tl.constexpr):  # fmt: skip
    """Writes the gradient times m_u; with WEIGHS also adds the gradient through the mask, w times the unit's slope."""
    column, there, part = _place(columns, LEFT)
    mask = tl.load(masks + column, mask=there, other=0.0)
    slope = tl.zeros([LEFT], tl.float32)
    if WEIGHS:
        slope += tl.load(sums + column, mask=there, other=0.0) * tl.load(steeps + column, mask=there, other=0.0)
    if VECTOR:
        first = there & (part == 0)
        value = tl.load(one_gradient + column, mask=first, other=0.0).to(tl.float32)
        tl.store(one_slope + column, (value * mask).to(one_slope.dtype.element_ty), mask=first)
    for row in range(part * PER, tl.minimum(part * PER + PER, rows), BLOCK):
        at, inside = _numbers(row, column, there, rows, columns, BLOCK)
        found = tl.zeros([BLOCK, LEFT], tl.float32)
        if GIVEN:
            found += mask[None, :] * tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHS:
            found += slope[None, :] * tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(slopes + at, found.to(slopes.dtype.element_ty), mask=inside)
