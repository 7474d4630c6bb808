"""Passes tensors to the kernels as an address and a count, which makes a call cost almost nothing."""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types
from numba.extending import intrinsic


def _pointer(number: Any) -> Any:
    """An intrinsic that makes an address a pointer to numbers of this type."""

    @intrinsic
    def pointer(_context: Any, address: Any) -> Any:
        signature = types.CPointer(number)(address)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


_bits, _longs, _doubles = (_pointer(number) for number in (types.int32, types.int64, types.float64))


@njit(inline="always")
def bits_at(address, count):
    """The `count` 32-bit numbers at `address`, as an array of integers."""
    return carray(_bits(address), (count,))


@njit(inline="always")
def longs_at(address, count):
    """The `count` integers of 64 bits at `address`."""
    return carray(_longs(address), (count,))


@njit(inline="always")
def doubles_at(address, count):
    """The `count` float64 numbers at `address`."""
    return carray(_doubles(address), (count,))


WIDE = 16  # numbers that `copy_wide` copies


@intrinsic
def copy_wide(_context: Any, target: Any, source: Any) -> Any:
    """Copies WIDE numbers of 32 bits from one address to another, in one or two instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir  # type: ignore[import-untyped]

        pointer = ir.VectorType(ir.IntType(32), WIDE).as_pointer()
        to, at = (builder.inttoptr(one, pointer) for one in arguments)
        builder.store(builder.load(at, align=4), to, align=4)
        return context.get_dummy_value()

    return types.none(target, source), generate
