"""Describes in words what a key can hold, from the type hints of its dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pdp.errors import Refusal
from pdp.wording import KINDS

_WORDS: dict[Any, str] = KINDS | {list: "a list such as [a,b]", dict: "values by name such as {a: 1}"}


def describe(hint: Any) -> str:
    """For example 'a whole number or null' for `int | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(part) for part in typing.get_args(hint))
    if hint == list[int]:
        return "a list of whole numbers such as [4,1]"
    if dataclasses.is_dataclass(hint):
        return "a group of keys"
    return _WORDS.get(typing.get_origin(hint) or hint, "another kind of value")


def wrong_type(tree: DictConfig, key: str, text: str) -> Refusal:
    """The refusal of the override `text`, whose value `key` cannot hold."""
    node: Any = tree
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node, DictConfig) or part not in node:
            break
        child = node._get_node(part)
        if not isinstance(child, DictConfig):
            return Refusal(f"{text}: {part} holds one value and no keys under it; give {'.'.join(parents)}=<value>")
        node = child
    kind = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    hint = typing.get_type_hints(kind).get(last) if kind is not None and dataclasses.is_dataclass(kind) else None
    wanted = describe(hint) if hint is not None else "another kind of value"
    return Refusal(f"{text} is not {wanted}: give {key}=<{wanted}>")
