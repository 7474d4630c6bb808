"""Runs a kernel in parts, on the same OpenMP threads as PyTorch's operations.

In the middle of a training step those threads keep the cores: they wait for the next operation without sleeping, and a
thread of ours would have to wait for one of them. Numba's own threads are not used, because they share OpenMP with
PyTorch too and make its operations use a different number of threads once they have started.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numba import cfunc, njit, types
from numba.extending import intrinsic

from pdp.threads import forked, in_parts

_PART = 1 << 15  # numbers in a part on threads that are awake: some microseconds of work
_EACH = 16  # most parts for each thread: enough to end together although others use the cores too
_LONG_PART = 1 << 17  # numbers in a part on threads that must be woken
_MOST = 7  # most threads that are woken, because waking each one takes time

_INTEGERS, _REALS = types.CPointer(types.int64), types.CPointer(types.float64)
_KERNEL = types.void(types.int64, types.int64, _INTEGERS, _REALS)
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


class Kernel(NamedTuple):
    """A compiled kernel."""

    call: Any  # (part, parts, integers, reals)
    address: int
    compiled: Any  # holds the machine code


def parted(**options: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Compiles `kernel(part, parts, integers, reals)`, which does one of `parts` parts of its work.

    All arguments are numbers: `integers` (int64), also the addresses of tensors and arrays, and `reals` (float64).
    """

    def compiled(kernel: Callable[..., None]) -> Kernel:
        made = cfunc(_KERNEL, cache=True, error_model="numpy", **options)(kernel)
        place: Any = made.address
        return Kernel(_CALL(place), place, made)

    return compiled


def run(kernel: Kernel, numbers: int, integers: Sequence[int], reals: Sequence[float] | int = ()) -> None:
    """Does all parts of a kernel that `parted` has compiled, on several threads if it reads many `numbers`.

    `reals` can be the address of float64 numbers.
    """
    whole = (ctypes.c_int64 * len(integers))(*integers)
    rest = reals if isinstance(reals, int) else (ctypes.c_double * len(reals))(*reals)
    threads = torch.get_num_threads() if numbers >= 2 * _PART else 1
    if threads == 1:
        kernel.call(0, 1, whole, rest)
        return
    # OpenMP's threads are not there in a forked process, and starting them would wait for ever.
    start = None if forked() else _openmp()
    if start is None:
        parts = max(1, numbers // _LONG_PART)
        in_parts(kernel.call, parts, 0 if parts < 4 else min(threads - 1, parts - 1, _MOST), whole, rest)
        return
    second = rest if isinstance(rest, int) else ctypes.addressof(rest)
    parts = min(numbers // _PART, _EACH * threads)
    job = (ctypes.c_int64 * 5)(0, parts, kernel.address, ctypes.addressof(whole), second)
    start(_take_parts.address, job, threads, 0)  # fewer threads would make OpenMP end the others


@njit(inline="always")
def share_of(part, parts, total, before, count, step):
    """Where this part of `total` numbers begins and ends in a tensor of `count` of them, after `before` others.

    Ends are multiples of `step` or the tensor's own.
    """
    first, last = total * part // parts - before, total * (part + 1) // parts - before
    first, last = (max(first, 0) + step - 1) // step * step, (max(last, 0) + step - 1) // step * step
    return min(first, count), min(last, count)


def address(array: Any) -> int:
    """Where a NumPy array's numbers are; they must lie side by side."""
    return array.__array_interface__["data"][0]


@cache
def _openmp() -> Any:
    """The function that runs another on all threads of PyTorch's OpenMP; None where PyTorch has no GNU OpenMP."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    found = None
    # In the order in which PyTorch's own calls found theirs: what was loaded for all, as by LD_PRELOAD, comes first.
    for name in (None, str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")):
        with suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library of all
            found = found or ctypes.CDLL(name).GOMP_parallel
    if found is None:
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return found


@intrinsic
def _next_part(_context: Any, job: Any) -> Any:
    """The first number of the job, which is then one more; two threads never get the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = context.get_constant(types.int64, 1)
        return builder.atomic_rmw("add", arguments[0], one, "monotonic")

    return types.int64(job), generate


@intrinsic
def _call(_context: Any, kernel: Any, part: Any, parts: Any, integers: Any, reals: Any) -> Any:
    """Calls the kernel at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir  # type: ignore[import-untyped]

        long = ir.IntType(64)
        places = (long.as_pointer(), ir.DoubleType().as_pointer())
        pointer = ir.FunctionType(ir.VoidType(), (long, long, *places)).as_pointer()
        given = [builder.inttoptr(one, place) for one, place in zip(arguments[3:], places, strict=True)]
        builder.call(builder.inttoptr(arguments[0], pointer), [*arguments[1:3], *given])
        return context.get_dummy_value()

    return types.none(kernel, part, parts, integers, reals), generate


@cfunc(types.void(_INTEGERS), cache=True)
def _take_parts(job):
    """Does one part after another as long as there are any: next part, parts, kernel, its integers, its reals."""
    part: Any = _next_part(job)  # type: ignore[call-arg]
    while part < job[1]:
        _call(job[2], part, job[1], job[3], job[4])
        part = _next_part(job)
