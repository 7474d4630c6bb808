"""Options that a person gives by keyword: which names there are, and what kind of value each takes."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from pdp.errors import Refusal
from pdp.wording import KINDS, did_you_mean

# What counts as a value of a type: NumPy's numbers are as good as Python's.
_TYPES: dict[Any, type] = {int: Integral, float: Real, str: str, bool: bool, type(None): type(None)}


def option_names(kind: type) -> set[str]:
    """The names of the options that a dataclass holds; its field `name` says whose they are and is no option."""
    return {one.name for one in dataclasses.fields(kind)} - {"name"}


def check_names(
    owner: str, given: Iterable[str], known: set[str], elsewhere: Mapping[str, Iterable[str]] | None = None
) -> None:
    """Raises `Refusal` for the first name that is none of the options `known` of `owner`, such as method=pdp.

    `elsewhere` are the names of other options, by what takes them.
    """
    for name in given:
        if name not in known:
            places = [place for place, names in (elsewhere or {}).items() if name in names]
            hint = f"give it in {places[0]}" if places else did_you_mean(name, known)
            raise Refusal(f"{owner} has no option {name}: {hint}")


def refuse_beside(whole: object, given: Iterable[str]) -> None:
    """Raises `Refusal` for options beside a whole object that has its own: they would change nothing."""
    if names := ", ".join(given):
        raise Refusal(
            f"{names} would change nothing beside {type(whole).__name__}(...): set it there, or give a name instead of "
            "the object"
        )


def check_kinds(options: object, group: str) -> None:
    """Raises `Refusal` for a field of a dataclass that holds another kind of value than its annotation says.

    `group` is how the command line calls the options, such as "method"; a field whose annotation is neither number,
    text nor truth is left to its owner.
    """
    hints = typing.get_type_hints(type(options))
    for name in option_names(type(options)):
        check_kind(f"{group}.{name}", getattr(options, name), hints[name])


def check_kind(key: str, value: object, hint: Any) -> None:
    """Raises `Refusal` if a value is not of the kind that its annotation `hint` says."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not all(part in _TYPES for part in parts):
        return
    number = isinstance(value, bool) and bool not in parts  # Python's True would pass for 1
    if number or not any(isinstance(value, _TYPES[part]) for part in parts):
        raise Refusal(f"{key}={value!r} is not {' or '.join(KINDS[part] for part in parts)}")
