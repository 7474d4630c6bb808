"""Whether a value that was read from JSON is of the kind that a type hint says, and that kind in words."""

from __future__ import annotations

import types
import typing
from typing import Any

from pdp.wording import KINDS


def fits(hint: Any, value: Any) -> bool:
    """Whether `value` is of the hint's kind: str, int, float, None, list, dict, unions of them, or anything (Any)."""
    parts = typing.get_args(hint)
    if hint is Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(part, value) for part in parts)
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(fits(parts[0], one) for one in value)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict) and all(fits(parts[1], one) for one in value.values())
    if hint in (int, float):  # true and false are no numbers here, and 3.0 is as whole as 3
        whole = isinstance(value, float) and value.is_integer()
        return (isinstance(value, int | hint) or whole) and not isinstance(value, bool)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    """For example 'a whole number or null' for `int | None`."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts)
    if typing.get_origin(hint) is list:
        return "a list" + ("" if parts[0] is Any else f" in which each entry is {in_words(parts[0])}")
    if typing.get_origin(hint) is dict:
        return "values by name" + ("" if parts[1] is Any else f", each of which is {in_words(parts[1])}")
    return KINDS.get(hint, "another kind of value")
