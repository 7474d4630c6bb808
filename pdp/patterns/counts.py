"""Numbers of channels that a module holds and by which its code slices: `x[:, :self.width]`, `x.split(self.splits, 1)`.

In a smaller module these numbers must be smaller. Only attributes that the running module's forward names are taken for
them, and the proof shows whether that was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from pdp.patterns.walk import Walk


def cut_at(walk: Walk, atoms: np.ndarray, bounds: Sequence[int]) -> bool:
    """Notes the attributes that hold these numbers of leading channels of `atoms`; returns whether each has one."""
    return all([_note(walk, atoms[:bound], bound) for bound in bounds])


def split_at(walk: Walk, atoms: np.ndarray, sizes: Sequence[int]) -> bool:
    """The same for parts of these sizes: a list attribute, or numbers, of which the last part may be the rest."""
    name, module = walk.running
    parts = np.split(atoms, np.cumsum(sizes)[:-1])
    key = _named(module, list(sizes))
    if key is not None:
        for index, part in enumerate(parts):
            walk.counts.append((name, module, key, index, part))
        return True
    firsts: dict[int, np.ndarray] = {}
    unnamed = 0
    for part, size in zip(parts, sizes, strict=True):
        if size in firsts:
            both = (part >= 0) & (firsts[size] >= 0)
            walk.atoms.tie(firsts[size][both], part[both])
        elif not _note(walk, part, size):
            unnamed += 1
        firsts.setdefault(size, part)
    return unnamed <= 1 < len(firsts)


def _note(walk: Walk, atoms: np.ndarray, number: int) -> bool:
    name, module = walk.running
    key = _named(module, number)
    if key is not None:
        walk.counts.append((name, module, key, None, atoms))
    return key is not None


def _named(module: nn.Module | None, value: int | list[int]) -> str | None:
    """The only attribute with this value that the module's forward names; None if there is not exactly one."""
    if module is None:
        return None
    names = _asked(type(module))  # type: ignore[arg-type]
    found = [key for key in names if _equal(getattr(module, key, None), value)]
    return found[0] if len(found) == 1 else None


def _equal(own: Any, value: int | list[int]) -> bool:
    if isinstance(value, int):
        return isinstance(own, int) and not isinstance(own, bool) and own == value
    return isinstance(own, (list, tuple)) and list(own) == value


@cache
def _asked(kind: type[nn.Module]) -> tuple[str, ...]:
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    return () if code is None else code.co_names


def lowered(module: Any, key: str, index: int | None, kept: int) -> None:
    """Sets a number in the module to the `kept` channels."""
    held = getattr(module, key)
    if index is not None:
        kept = type(held)([*held[:index], kept, *held[index + 1 :]])
    setattr(module, key, kept)
