"""Texts for people: suggestions of known names, any text as one line, shares and metrics in readable form."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names that are most similar to `name`, best first; empty if none is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]


_MOST = 30  # most names in a line
# What a value of a type is called, as type hints name the type.
KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'did you mean a or b? known: a, b, c' for a name that is not in `known`."""
    known = sorted(known)
    near = nearest(name, known)
    question = f"did you mean {' or '.join(near)}? " if near else ""
    if len(known) > _MOST:
        return f"{question}{len(known)} are known; python train.py --help lists them"
    return f"{question}known: {', '.join(known)}" if known else "none is known"


def one_line(text: object) -> str:
    """The text with every run of white space replaced by one space."""
    return " ".join(str(text).split())


def percent(share: float) -> str:
    """A fraction in percent."""
    return f"{100 * share:.2f} %"


def score(name: str, value: float) -> str:
    """A metric as text: fractions in percent, perplexity and bits per byte as they are."""
    return f"{value:.3f}" if name.startswith(("perplexity", "bits_per_byte")) else percent(value)


_UNITS = {"mac": "MACs", "channel": "channels"}  # what a target may be a share of, besides weights


def gone(target_unit: str) -> str:
    """The name of the pruned share: sparsity, "MACs gone" or "channels gone"."""
    return f"{_UNITS[target_unit]} gone" if target_unit in _UNITS else "sparsity"


def of_unit(target_unit: str) -> str:
    """The words after a share: none for weights, " of MACs" or " of channels"."""
    return f" of {_UNITS[target_unit]}" if target_unit in _UNITS else ""


def duration(seconds: float) -> str:
    """Seconds in readable form: 42 s, 3 min 20 s, 5 h 07 min, 2 days 3 h; "?" where they are not known."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"
