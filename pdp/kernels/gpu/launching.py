"""Launches Triton kernels at little cost to the host: looks up the compiled kernel by facts about the arguments."""

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
    """Runs `programs` programs of `kernel` with `warps` warps each, on the device of its first argument, a tensor.

    `constants` are the kernel's constexpr parameters in the kernel's own order. Triton's own launch takes tens of
    microseconds, too much for a step with a hundred layers. A caller that knows everything the compiled kernel depends
    on (dtypes, which tensors are aligned to 16 bytes, integers, constants) passes it as `known`, which saves inspecting
    each argument.
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
    """What a compiled kernel depends on: a tensor's dtype and alignment, and how Triton specializes an integer."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return (argument == 1, argument % 16 == 0) if isinstance(argument, int) else float
