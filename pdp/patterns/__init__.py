"""The patterns, one file each: what one prunable unit is. Importing this needs no torch."""

from __future__ import annotations

import difflib
import importlib
import re
from typing import TYPE_CHECKING, Any

from pdp.errors import Refusal
from pdp.keywords import check_kinds, check_names, option_names, refuse_beside
from pdp.patterns.options import PATTERNS

if TYPE_CHECKING:
    from pdp.patterns.pattern import Pattern


def make_pattern(pattern: str | Pattern, **options: Any) -> Pattern:
    """The pattern with that name and these options ("2:4" is nm with n=2, m=4, "4x1" a block).

    Raises `Refusal` for unknown ones.
    """
    if not isinstance(pattern, str):
        refuse_beside(pattern, options)
        return pattern
    if ratio := re.fullmatch(r"(\d+):(\d+)", pattern):
        options = _with_own(pattern, {"n": int(ratio[1]), "m": int(ratio[2])}, options)
        pattern = "nm"
    elif size := re.fullmatch(r"(?:block-)?(\d+)x(\d+)", pattern):
        options = _with_own(pattern, {"block": [int(size[1]), int(size[2])]}, options)
        pattern = "block"
    if pattern not in PATTERNS:
        near = difflib.get_close_matches(pattern, PATTERNS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(f"pattern={pattern} is unknown: choose one of {', '.join(PATTERNS)}, 2:4 or 4x1 (prune=){hint}")
    check_names(f"prune={pattern}", options, option_names(PATTERNS[pattern]))
    values = PATTERNS[pattern](**options)
    check_kinds(values, "prune")
    values.check()
    return importlib.import_module(f"pdp.patterns.{pattern}").Pattern(values)


def _with_own(label: str, own: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options of a pattern whose name says some of them; raises `Refusal` if others are given for those."""
    for name in own.keys() & options.keys():
        given = options[name]
        if (list(given) if isinstance(given, tuple) else given) != own[name]:
            raise Refusal(f"prune.{name}={given} contradicts pattern {label}: leave it out")
    return own | options
