"""Launches of Triton kernels that cost the host little: what is known of the arguments is looked up, not found anew."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

_compiled: dict[Hashable, Any] = {}


def launch(
    kernel: Any,
    programs: int,
    *arguments: Tensor | int | float,
    known: Hashable = None,
    warps: int = 4,
    **constants: Any,
) -> None:
    """Runs so many programs of `kernel`, of `warps` warps each, on the device of its first argument, a tensor.

    `constants` are the kernel's constexpr parameters in its own order. Triton's own way to a kernel takes tens of
    microseconds, which a step of a hundred layers does not have; where a caller knows all that the compiled kernel
    depends on (types, which tensors begin at sixteen bytes, whole numbers, constants), `known` saves a look at each.
    """
    where = arguments[0].device  # type: ignore[union-attr]
    if where.type != "cuda" or torch.version.hip or torch.cuda.current_device() != where.index:
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **constants, num_warps=warps)
        return
    seen = known or tuple(map(_seen, arguments))
    key = (kernel, where.index, warps, seen, *constants.values())
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = kernel[(programs,)](*arguments, **constants, num_warps=warps)
    else:
        compiled[(programs, 1, 1)](*arguments, *constants.values())


def _seen(argument: Tensor | int | float) -> Any:
    """What a compiled kernel depends on: a tensor's type and alignment, and what Triton folds of a whole number."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument == 1, argument % 16 == 0) if isinstance(argument, int) else float
