"""Which weights of its submodules a module's own code may read, judged by the names that the code uses.

Only a compiled graph needs to know this before it runs; otherwise a look-up is handled when it occurs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_ANY_CHILD = {"getattr", "children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}
_DEPTH = 5  # depth of nested calls that are followed


def may_read(module: nn.Module, key: str) -> bool:
    """Whether its forward may read the `weight` of a submodule called `key`, as a parent does to multiply by it."""
    own = {name: one for name, value in vars(module).items() for one in _functions(value)}
    names, weighs = _read_by(type(module)) if not own else _follow(type(module), own)  # type: ignore[arg-type]
    return weighs and (key.isdigit() or key in names or bool(names & _ANY_CHILD))


@cache
def _read_by(kind: type[nn.Module]) -> tuple[set[str], bool]:
    return _follow(kind, {})


def _follow(kind: type[nn.Module], own: dict[str, FunctionType]) -> tuple[set[str], bool]:
    """The names used by a forward of this class and by all that it calls by name, and whether "weight" is among them.

    `own` are functions stored in the module itself. PyTorch's own code is not followed, as it reads only its arguments.
    """
    names: set[str] = set()
    weighs = False
    known = {
        name: one for base in reversed(kind.__mro__) for name, value in vars(base).items() for one in _functions(value)
    }
    known |= own
    waiting = [(one, 0) for name, one in known.items() if name in ("forward", "__call__")]
    seen: set[int] = set()
    while waiting:
        function, depth = waiting.pop()
        if id(function) in seen or (function.__module__ or "").partition(".")[0] == "torch":
            continue
        seen.add(id(function))
        for code in _codes(function.__code__):
            names.update(code.co_names)
            weighs |= "weight" in code.co_names or "weight" in code.co_consts
            if depth < _DEPTH:
                called = [known.get(name, function.__globals__.get(name)) for name in code.co_names]
                waiting += [(one, depth + 1) for value in called for one in _functions(value)]
        if depth < _DEPTH:
            waiting += [(one, depth + 1) for value in _closed_over(function) for one in _functions(value)]
    return names, weighs


def _functions(value: Any) -> Iterator[FunctionType]:
    """The function that a value is or wraps."""
    for _ in range(3):
        if isinstance(value, (staticmethod, classmethod, MethodType)):
            value = value.__func__
        elif isinstance(value, partial):
            value = value.func
        elif isinstance(value, property):
            value = value.fget
    if isinstance(value, FunctionType):
        yield value


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a closure's cell that is not filled yet
            continue


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
