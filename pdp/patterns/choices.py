"""Forwards that choose by their data: Python reads a number from a tensor, or the shape of a result depends on values.

With another input such a forward may run other layers. So it is followed again with every choice reversed, and with
very small and very large numbers. If layers remain that no forward has used, everything that passes through the code
that chooses must stay as it is.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

REASON = "its channels pass through {}, which chooses by its data between layers, {} among them, that were not seen"
_NUMBERS = {"_local_scalar_dense", "equal"}
_SHAPES = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"}


class Choices:
    """The modules whose own forward chooses, and the answers that they get in the next forward."""

    def __init__(self) -> None:
        self.places: set[str] = set()
        self.answer: float | None = None  # the answer to every read of a float; if it is set, booleans are reversed
        self.numbers = False  # whether a float was read
        self._truths: dict[tuple[str, int], bool] = {}  # first answers by module and turn, as each is tried both ways
        self._turns: Counter[str] = Counter()
        self.unseen: dict[str, str] = {}  # modules in which everything stays, with an unused layer of each
        self._from_data: Any = WeakTensorKeyDictionary()

    def note(self, base: str, args: Any, kwargs: Any, out: Any, place: str, known: Any) -> Any:
        """The operation's result, or another number in its place; `known` are ids of the model's own tensors."""
        chooses = base in _NUMBERS or base in _SHAPES or base == "index" and _by_booleans(args)
        exact = [one for one in tree_leaves(out) if isinstance(one, Tensor) and not one.is_floating_point()]
        if not (chooses or exact) or not any(self._of_data(one, known) for one in tree_leaves((args, kwargs))):
            return out
        for one in exact:
            self._from_data[one] = True
        if not chooses:
            return out
        self.places.add(place)
        return self._answered(out, place) if base in _NUMBERS else out

    def _of_data(self, value: Any, known: Any) -> bool:
        if not isinstance(value, Tensor) or id(value) in known:
            return False
        return value.is_floating_point() or self._from_data.get(value, False)

    def begin(self, answer: float | None = None) -> None:
        """To be called when a forward begins; with an `answer`, choices are reversed in it."""
        self.answer = answer
        self._turns.clear()

    def _answered(self, number: Any, place: str) -> Any:
        if isinstance(number, float):
            self.numbers = True
            return number if self.answer is None else self.answer
        if not isinstance(number, bool):
            return number
        self._turns[place] += 1
        first = self._truths.setdefault((place, self._turns[place]), number)
        return number if self.answer is None else not first

    def close(self, unread: list[str]) -> bool:
        """Whether one of these unread layers is in a module that chooses; everything in such modules then stays."""
        for place in self.places:
            inside = [name for name in unread if not place or name.startswith(f"{place}.")]
            if inside:
                self.unseen[place] = inside[0]
        return bool(self.unseen)


def _by_booleans(args: Any) -> bool:
    kinds = (torch.bool, torch.uint8)
    return any(isinstance(one, Tensor) and one.dtype in kinds for one in args[1])
