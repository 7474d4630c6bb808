"""The effective weight as it is given to code that reads a module's weight: what is written to it is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_WRITING = {"__setitem__", "__set__", "__delete__"}
_NOT_WRITING = {"__index__", "__int__", "__invert__", "retain_grad"}


class Readable(Tensor):
    """Computes as the effective weight; an in-place operation, or an assignment to `data`, changes the stored one."""

    effective: Tensor
    stored: Tensor
    written: Callable[[], None]  # called after a write

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        with torch._C.DisableTorchFunctionSubclass():
            if type(first) is Readable:
                name = getattr(func, "__name__", "")
                attribute = getattr(func, "__self__", None)
                if name == "detach" or (attribute is Tensor.data and name == "__get__"):
                    return readable(func(first.effective), func(first.stored), first.written)
                if name == "requires_grad_":  # of the stored weight, for whoever reads it next
                    first.written()
                    func(first.stored, *args[1:], **kwargs)
                    return first
                if attribute is Tensor.grad:
                    args = (first.stored, *args[1:])
                elif _writes(name):
                    first.written()
                    args = (first.stored, *args[1:])
            if type(kwargs.get("out")) is Readable:
                kwargs["out"].written()
                kwargs["out"] = kwargs["out"].stored
            return func(*tree_map(_plain, args), **tree_map(_plain, kwargs))


def readable(effective: Tensor, stored: Tensor, written: Callable[[], None]) -> Tensor:
    """`effective`, connected to the graph, for code that may write to what it takes for `stored`."""
    given = effective.as_subclass(Readable)
    given.effective, given.stored, given.written = effective, stored, written
    return given


def _writes(name: str) -> bool:
    if name in _WRITING:
        return True
    if name.startswith("__"):
        return name.startswith("__i") and name not in _NOT_WRITING
    return name.endswith("_") and name not in _NOT_WRITING


def _plain(value: Any) -> Any:
    return value.effective if type(value) is Readable else value
