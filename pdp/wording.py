"""Words for refusals: the nearest known names, and any text as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names most like `name`, best first; empty where none is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]


_MOST = 30  # names that a line can hold


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'did you mean a or b? known: a, b, c' for a name that is none of `known`."""
    known = sorted(known)
    near = nearest(name, known)
    question = f"did you mean {' or '.join(near)}? " if near else ""
    if len(known) > _MOST:
        return f"{question}{len(known)} are known; python train.py --help lists them"
    return f"{question}known: {', '.join(known)}" if known else "none is known"


def one_line(text: object) -> str:
    """The text with every run of white space made one blank."""
    return " ".join(str(text).split())
