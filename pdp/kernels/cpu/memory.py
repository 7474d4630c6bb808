"""Passes tensors to the kernels as an address and a count, which makes a call cost almost nothing."""

from __future__ import annotations

from typing import Any

from numba import carray, njit, types
from numba.extending import intrinsic


@intrinsic
def _pointer(_context: Any, address: Any) -> Any:
    """The address as a pointer to 32-bit integers."""
    signature = types.CPointer(types.int32)(address)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@njit(inline="always")
def bits_at(address, count):
    """The `count` 32-bit numbers at `address`, as an array of integers."""
    return carray(_pointer(address), (count,))  # type: ignore[call-arg]
