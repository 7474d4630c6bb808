"""Which weights of its submodules a module's own code may read, judged by the names that the code uses.

Only a compiled graph needs to know this before it runs; otherwise a look-up is handled when it occurs. Nothing of the
model is called for it, not even a property: a weight that nobody reads may be taken for one that is read.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_ANY_CHILD = {"getattr", "children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}
_DEPTH = 5  # depth of nested calls that are followed
_FUNCTIONS, _HOLDERS, _ELEMENTS = 300, 1000, 100  # how much is followed: functions, objects, entries of a table
_ALWAYS = {"forward", "__call__"}  # what a call of an object runs
# Their code reads only its arguments, and is not followed.
_OTHERS = {"torch", "numpy", "builtins", *sys.stdlib_module_names} - {"__main__"}
_IMPORT, _ATTRIBUTE = dis.opmap["IMPORT_NAME"], ("LOAD_ATTR", "LOAD_METHOD")


def reading_of(module: nn.Module) -> Callable[[str], bool]:
    """Tells whether its forward may read the `weight` of a submodule called so, as a parent does to multiply by it."""
    walk = _Walk(module)
    # A child's own weights are its own matter, unless it reads those of a module that it is given.
    weighs = walk.weighs or any(_Walk(child, given=True).weighs for child in walk.helpers)
    any_child = bool(walk.names & _ANY_CHILD)
    return lambda key: weighs and (key.isdigit() or key in walk.names or any_child)


class _Walk:
    """The names used by a forward of this module and by all that it calls by name, and whether "weight" is among them.

    With `given`, only weights count that are not looked up from `self`.
    """

    def __init__(self, module: nn.Module, given: bool = False):
        self.names: set[str] = set(_ALWAYS)
        self.weighs = False
        self.module, self.given = module, given
        self.helpers: list[nn.Module] = []  # children of classes that are not PyTorch's
        self.waiting: list[tuple[FunctionType, int, bool]] = []
        self.holders: list[tuple[Any, int]] = []
        self.seen: dict[int, Any] = {}  # kept, so that no other object gets the same id
        self.functions = 0
        self.file = getattr(sys.modules.get(type(module).__module__), "__file__", None)
        self._hold(module, 0)
        while self.waiting and not (given and self.weighs):
            while self.waiting:
                self._follow(*self.waiting.pop())
            # A name of one function may be looked up in an object that another one has named.
            for holder, depth in list(self.holders):
                self._look_up(holder, depth)

    def _hold(self, value: Any, depth: int) -> None:
        if len(self.holders) < _HOLDERS:
            self.holders.append((value, depth))
            self._look_up(value, depth)

    def _look_up(self, holder: Any, depth: int) -> None:
        kind = holder if _is(holder, type) else type(holder)
        given = self.given or (holder is not self.module and issubclass(kind, nn.Module))
        for one in _members(holder, self.names):
            self._expand(one, depth + 1, given)

    def _expand(self, value: Any, depth: int, given: bool = False) -> None:
        """Takes note of a value that the code names; with `given`, it is a module's, whose own weights do not count."""
        if id(value) in self.seen or depth > _DEPTH + 1 or _is(value, (str, bytes, int, float, Tensor)):
            return
        self.seen[id(value)] = value
        if _is(value, partial):
            for one in (*value.args, *value.keywords.values()):
                self._expand(one, depth, given)
        function = _function(value)
        if function is not None:
            if not _foreign(function.__module__):
                self.waiting.append((function, depth, given or self.given))
        elif _is(value, (dict, list, tuple, set, frozenset)):
            for one in list(value.values() if _is(value, dict) else value)[:_ELEMENTS]:
                self._expand(one, depth, given)
        elif _is(value, nn.Module):
            if not _foreign(type(value).__module__):
                self.helpers.append(value)
                if self.given:
                    self._hold(value, depth)
            else:
                for child in list(vars(value).get("_modules", {}).values())[:_ELEMENTS]:
                    self._expand(child, depth)
        elif _is(value, ModuleType):
            if not _foreign(value.__name__):
                self._hold(value, depth)
        elif not _foreign(value.__module__ if _is(value, type) else type(value).__module__):
            self._hold(value, depth)

    def _follow(self, function: FunctionType, depth: int, given: bool) -> None:
        if self.functions == _FUNCTIONS:
            return
        self.functions += 1
        code = function.__code__
        names, texts, imports = _used_by(code)
        self.names |= names | texts
        self.weighs |= _weighs(code, given)
        if depth > _DEPTH:
            return
        for name in names:
            if name in function.__globals__:
                self._expand(function.__globals__[name], depth + 1)
        for name in imports:
            found = list(_imported(name, function.__globals__.get("__package__") or ""))
            if not found and not _foreign(name) and code.co_filename == self.file:
                self.weighs = True  # by code that is not there yet
            for one in found:
                self._expand(one, depth + 1)
        for cell in function.__closure__ or ():
            try:
                self._expand(cell.cell_contents, depth + 1)
            except ValueError:  # a closure's cell that is not filled yet
                continue


def _is(value: Any, kinds: Any) -> bool:
    """`isinstance`, but without asking the object, whose `__class__` may be code."""
    return issubclass(type(value), kinds)


def _foreign(module: Any) -> bool:
    return str(module or "").partition(".")[0] in _OTHERS


def _function(value: Any) -> FunctionType | None:
    """The function that a value is or wraps."""
    for _ in range(4):
        if _is(value, (staticmethod, classmethod, MethodType)):
            value = value.__func__
        elif _is(value, partial):
            value = value.func
        elif _is(value, property):
            value = value.fget
        elif type(value).__module__ == "functools" and "__wrapped__" in getattr(value, "__dict__", {}):
            value = vars(value)["__wrapped__"]  # of functools.cache
    return value if _is(value, FunctionType) else None


def _members(value: Any, names: set[str]) -> Iterator[Any]:
    """What these names mean in an object, a class or a Python module."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:  # one with slots
        own = {}
    for name in (names | {"__init__"} if _is(value, type) else names - {"__init__"}) & own.keys():
        yield own[name]
    if _is(value, nn.Module):
        children = own.get("_modules", {})
        yield from [children[name] for name in names & children.keys()]
        if names & _ANY_CHILD:
            yield from list(children.values())[:_ELEMENTS]
    if not _is(value, ModuleType):
        kind: Any = value if _is(value, type) else type(value)
        known = _known(kind)
        yield from [known[name] for name in names & known.keys() if name != "__init__"]


@cache
def _known(kind: type) -> dict[str, Any]:
    bases = [base for base in reversed(kind.__mro__) if not _foreign(base.__module__)]
    return {name: value for base in bases for name, value in vars(base).items()}


@cache
def _used_by(code: CodeType) -> tuple[frozenset[str], frozenset[str], tuple[str, ...]]:
    """The names that a function uses, the texts that may be names, and the Python modules that it imports."""
    names: set[str] = set()
    texts: set[str] = set()
    imports: list[str] = []
    for one in _codes(code):
        names.update(one.co_names)
        texts.update(text for text in one.co_consts if isinstance(text, str) and text.isidentifier())
        if _IMPORT in one.co_code[::2]:
            imports += [step.argval for step in dis.get_instructions(one) if step.opcode == _IMPORT]
    return frozenset(names), frozenset(texts), tuple(imports)


@cache
def _weighs(code: CodeType, given: bool) -> bool:
    """Whether a weight is looked up; with `given`, from anything but the function's `self`."""
    for one in _codes(code):
        if "weight" in one.co_consts or ("weight" in one.co_names and not given):
            return True
        if "weight" not in one.co_names:
            continue
        root = ""
        for step in dis.get_instructions(one):
            if step.opname in _ATTRIBUTE:
                if step.argval == "weight" and root != "self":
                    return True
            elif step.opname != "CACHE":
                root = step.argval if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) else ""
    return False


def _imported(name: str, package: str) -> Iterator[ModuleType]:
    """The Python module called so, from anywhere or from the package that the code is in, with those around it."""
    parts = package.split(".") if package else []
    for start in ["", *(".".join(parts[:count]) for count in range(1, len(parts) + 1))]:
        whole = ".".join(one for one in (start, name) if one)
        while whole in sys.modules and whole != start:
            yield sys.modules[whole]
            whole = whole.rpartition(".")[0]
    if not name and package in sys.modules:  # from . import
        yield sys.modules[package]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
