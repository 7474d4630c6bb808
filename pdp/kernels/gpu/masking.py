"""The kernels of PDP's effective weight and its gradient: one pass each, computed in float32 whatever the dtypes."""

from __future__ import annotations

import triton
import triton.language as tl

from pdp.masks.soft import FARTHEST, NOTHING, SATURATED

_NOTHING: tl.constexpr = tl.constexpr(NOTHING)
_SATURATED: tl.constexpr = tl.constexpr(SATURATED)
_FARTHEST: tl.constexpr = tl.constexpr(FARTHEST)
_LARGEST: tl.constexpr = tl.constexpr(8.5e37)  # a quarter of float32's largest number


@triton.jit
def offset_of(cuts, at, there, inverse, INNER, MEMBERS: tl.constexpr, FLAT: tl.constexpr):
    """-t^2 / tau of each weight, kept finite; with groups t is the cut of the weight's group. FLAT means INNER is 1."""
    if MEMBERS == 1:
        cut = tl.load(cuts)
    elif FLAT:
        cut = tl.load(cuts + at // MEMBERS, mask=there, other=0.0)
    else:
        cut = tl.load(cuts + at // (MEMBERS * INNER) * INNER + at % INNER, mask=there, other=0.0)
    cut = cut.to(tl.float32)
    return tl.minimum(tl.maximum(-(cut * tl.abs(cut)) * inverse, -_LARGEST), _LARGEST)


@triton.jit
def masked(weight, offset, inverse):
    """m(w) * w."""
    mask = tl.sigmoid(offset + weight * weight * inverse)
    return tl.where(mask > _NOTHING, mask, 0.0) * weight


@triton.jit
def sloped(weight, gradient, offset, inverse):
    """Writes the gradient times m + (2 w^2 / tau) m (1 - m)."""
    z = offset + weight * weight * inverse
    z = tl.minimum(tl.maximum(z, -_SATURATED), _SATURATED)
    mask = tl.sigmoid(z)
    # 2 w^2 / tau = 2 z + 2 t^2 / tau
    return gradient * (mask + 2 * (z - tl.maximum(offset, _FARTHEST)) * mask * (1 - mask))


@triton.jit
def write_effective(weights, effective, cuts, temperatures, temperature, size, INNER, MEMBERS: tl.constexpr,
                    FLAT: tl.constexpr, HELD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Writes m(w) * w. MEMBERS weights, INNER elements apart in memory, share a cut; with MEMBERS = 1 all weights share
    one.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    if HELD:
        temperature = tl.load(temperatures).to(tl.float32)
    weight = tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
    inverse = 1 / temperature
    offset = offset_of(cuts, at, there, inverse, INNER, MEMBERS, FLAT)
    tl.store(effective + at, masked(weight, offset, inverse).to(effective.dtype.element_ty), mask=there)


@triton.jit
def write_slope(weights, gradients, slopes, cuts, temperatures, temperature, size, INNER, MEMBERS: tl.constexpr,
                FLAT: tl.constexpr, HELD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Writes the gradient times m + (2 w^2 / tau) m (1 - m)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    if HELD:
        temperature = tl.load(temperatures).to(tl.float32)
    weight = tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
    gradient = tl.load(gradients + at, mask=there, other=0.0).to(tl.float32)
    inverse = 1 / temperature
    offset = offset_of(cuts, at, there, inverse, INNER, MEMBERS, FLAT)
    tl.store(slopes + at, sloped(weight, gradient, offset, inverse).to(slopes.dtype.element_ty), mask=there)
