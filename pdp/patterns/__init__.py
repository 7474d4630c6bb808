"""The patterns, one file each: what one prunable unit is. Importing this needs no torch."""

from __future__ import annotations

import difflib
import importlib
import re
from typing import TYPE_CHECKING, Any

from pdp.errors import Refusal
from pdp.patterns.options import PATTERNS

if TYPE_CHECKING:
    from pdp.patterns.pattern import Pattern


def make_pattern(pattern: str | Pattern, **options: Any) -> Pattern:
    """The pattern with that name and these options ("2:4" is nm with n=2, m=4, "4x1" a block).

    Raises `Refusal` for unknown ones.
    """
    if not isinstance(pattern, str):
        return pattern
    if ratio := re.fullmatch(r"(\d+):(\d+)", pattern):
        pattern, options = "nm", {"n": int(ratio[1]), "m": int(ratio[2]), **options}
    elif size := re.fullmatch(r"(?:block-)?(\d+)x(\d+)", pattern):
        pattern, options = "block", {"block": [int(size[1]), int(size[2])], **options}
    if pattern not in PATTERNS:
        near = difflib.get_close_matches(pattern, PATTERNS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refusal(f"pattern={pattern} is unknown: choose one of {', '.join(PATTERNS)}, 2:4 or 4x1 (prune=){hint}")
    try:
        values = PATTERNS[pattern](**options)
    except TypeError as error:
        raise Refusal(f"pattern={pattern} does not take these options: {error}") from None
    values.check()
    return importlib.import_module(f"pdp.patterns.{pattern}").Pattern(values)
