"""The kernels that mask several weights in one launch; `joint` calls them.

`table` is (6, SLOTS) int64 with a column for each weight: its first program; the addresses of the weight, its cuts and
its temperature; its number of elements; and the distance in memory between members of a group. Addresses that change in
every step (outputs and gradients) are arguments of the launch itself, so that it can be captured in a CUDA graph. All
addresses are multiples of 16 bytes. EVEN means that every weight has a multiple of eight elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pdp.kernels.gpu.masking import masked, offset_of, sloped


@triton.jit
def _pick(slot, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    """The address for slot number `slot`."""
    found = tl.where(slot == 1, a1, a0)
    found = tl.where(slot == 2, a2, found)
    found = tl.where(slot == 3, a3, found)
    found = tl.where(slot == 4, a4, found)
    found = tl.where(slot == 5, a5, found)
    found = tl.where(slot == 6, a6, found)
    found = tl.where(slot == 7, a7, found)
    found = tl.where(slot == 8, a8, found)
    found = tl.where(slot == 9, a9, found)
    found = tl.where(slot == 10, a10, found)
    found = tl.where(slot == 11, a11, found)
    found = tl.where(slot == 12, a12, found)
    found = tl.where(slot == 13, a13, found)
    found = tl.where(slot == 14, a14, found)
    return tl.where(slot == 15, a15, found)


@triton.jit
def _slot(table, SLOTS: tl.constexpr):
    """The slot of the weight that this program works on."""
    first = tl.load(table + tl.arange(0, SLOTS))
    return tl.sum((first <= tl.program_id(0)).to(tl.int32), 0) - 1


@triton.jit
def _weights(table, slot, temperature, TYPE: tl.constexpr, MEMBERS: tl.constexpr, FLAT: tl.constexpr,
             HELD: tl.constexpr, EVEN: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The addresses of this program's elements, which of them exist, their values, -t^2 / tau and 1 / tau."""
    column = table + slot
    at = (tl.program_id(0) - tl.load(column).to(tl.int32)) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(column + 4 * SLOTS).to(tl.int32)
    there = at // 8 * 8 < size if EVEN else at < size
    weights = tl.multiple_of(tl.load(column + SLOTS).to(tl.pointer_type(TYPE)), 16)
    weight = tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
    if HELD:
        temperature = tl.load(tl.load(column + 3 * SLOTS).to(tl.pointer_type(tl.float32)))
    inverse = 1 / temperature
    cuts = tl.load(column + 2 * SLOTS).to(tl.pointer_type(tl.float32))
    inner = tl.load(column + 5 * SLOTS).to(tl.int32)
    return at, there, weight, offset_of(cuts, at, there, inverse, inner, MEMBERS, FLAT), inverse


@triton.jit
def write_effective_of_many(table, o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15, temperature,
                            TYPE: tl.constexpr, OUT: tl.constexpr, MEMBERS: tl.constexpr, FLAT: tl.constexpr,
                            HELD: tl.constexpr, EVEN: tl.constexpr, SLOTS: tl.constexpr,
                            BLOCK: tl.constexpr):  # fmt: skip
    """m(w) * w of each weight."""
    slot = _slot(table, SLOTS)
    at, there, weight, offset, inverse = _weights(table, slot, temperature, TYPE, MEMBERS, FLAT, HELD, EVEN, SLOTS,
                                                  BLOCK)  # fmt: skip
    address = _pick(slot, o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15)
    effective = tl.multiple_of(address.to(tl.pointer_type(OUT)), 16)
    tl.store(effective + at, masked(weight, offset, inverse).to(OUT), mask=there)


@triton.jit
def write_slopes_of_many(table, g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15,
                         o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15, temperature,
                         TYPE: tl.constexpr, OUT: tl.constexpr, MEMBERS: tl.constexpr, FLAT: tl.constexpr,
                         HELD: tl.constexpr, EVEN: tl.constexpr, SLOTS: tl.constexpr,
                         BLOCK: tl.constexpr):  # fmt: skip
    """The gradient times m + (2 w^2 / tau) m (1 - m) for each weight; a negative address means there is no gradient."""
    slot = _slot(table, SLOTS)
    given = _pick(slot, g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15)
    if given > 0:
        at, there, weight, offset, inverse = _weights(table, slot, temperature, TYPE, MEMBERS, FLAT, HELD, EVEN, SLOTS,
                                                      BLOCK)  # fmt: skip
        gradients = tl.multiple_of(given.to(tl.pointer_type(OUT)), 16)
        gradient = tl.load(gradients + at, mask=there, other=0.0).to(tl.float32)
        address = _pick(slot, o0, o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14, o15)
        slopes = tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)
        tl.store(slopes + at, sloped(weight, gradient, offset, inverse).to(TYPE), mask=there)
