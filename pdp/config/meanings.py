"""The meanings of an options dataclass's fields, from their comments in the source, the only place where they are."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

from omegaconf import MISSING


@dataclasses.dataclass(frozen=True)
class Meaning:
    """A field as it is shown to people."""

    name: str
    kind: str  # the annotation as written
    default: str  # as typed on a command line; empty if the field is required
    text: str
    whose: str  # the source of the default, where the comment ends in brackets


def meanings(options: type) -> list[Meaning]:
    """Every field of a dataclass, in order; a field that a subclass repeats without a comment keeps its parent's."""
    comments: dict[str, tuple[str, str, str]] = {}
    for owner in reversed(options.__mro__):
        if dataclasses.is_dataclass(owner):
            for name, (kind, text, whose) in _comments(owner).items():
                before = comments.get(name, ("", "", ""))
                comments[name] = (kind, text, whose) if text else (kind, *before[1:])
    return [
        Meaning(field.name, comments[field.name][0], _default(field), *comments[field.name][1:])
        for field in dataclasses.fields(options)
    ]


def _comments(owner: type) -> dict[str, tuple[str, str, str]]:
    """Annotation, meaning and source of the default, by name, of the fields that this class itself defines."""
    source = textwrap.dedent(inspect.getsource(owner))
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno - 2
            words: list[str] = []
            while lines[above].strip().startswith("#"):
                words.insert(0, lines[above].strip().lstrip("# "))
                above -= 1
            last = lines[(node.end_lineno or node.lineno) - 1]
            behind = re.search(r"\s{2}# (.*)$", last[node.end_col_offset or 0 :])
            text = " ".join([*words, behind[1] if behind else ""]).strip()
            parts = re.fullmatch(r"(.*?)\s*(?:\[([^\[\]]*)\])?", text)
            assert parts
            found[node.target.id] = (ast.unparse(node.annotation), parts[1], parts[2] or "")
    return found


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return typed(value) if isinstance(value, list | dict) else ""
    return "" if field.default is dataclasses.MISSING or field.default == MISSING else typed(field.default)


def typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
