"""What a forward chooses by its data: Python asks a tensor for a number, or a result's shape depends on values.

Another input may then run other layers. What is chosen between is followed once more the other way round, and with very small and very large
numbers; where layers remain that no forward has used, all that passes through the code that chooses stays as it is.
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
    """The modules whose own forward chooses, and what is done about it in the next forward."""

    def __init__(self) -> None:
        self.places: set[str] = set()
        self.answer: float | None = None  # what is answered to who asks for a real number; truths are then turned round
        self.numbers = False  # whether anybody has
        self._truths: dict[tuple[str, int], bool] = {}  # as first given, by module and turn: each is tried both ways
        self._turns: Counter[str] = Counter()
        self.unseen: dict[str, str] = {}  # modules in which everything stays, and a layer of each that was not used
        self._from_data: Any = WeakTensorKeyDictionary()

    def note(self, base: str, args: Any, kwargs: Any, out: Any, place: str, known: Any) -> Any:
        """What the operation gives, `out` or another number; `known` are ids of the model's own tensors."""
        if base in _NUMBERS or base in _SHAPES or base == "index" and _by_booleans(args):
            if any(self._of_data(one, known) for one in tree_leaves((args, kwargs))):
                self.places.add(place)
                return self._answered(out, place) if base in _NUMBERS else out
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and not one.is_floating_point():
                if any(self._of_data(other, known) for other in tree_leaves((args, kwargs))):
                    self._from_data[one] = True
        return out

    def _of_data(self, value: Any, known: Any) -> bool:
        if not isinstance(value, Tensor) or id(value) in known:
            return False
        return value.is_floating_point() or self._from_data.get(value, False)

    def begin(self, answer: float | None = None) -> None:
        """A forward begins; with an `answer` it is one that chooses otherwise."""
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
        """Whether one of these layers lies where something is chosen; there everything stays from now on."""
        for place in self.places:
            inside = [name for name in unread if not place or name.startswith(f"{place}.")]
            if inside:
                self.unseen[place] = inside[0]
        return bool(self.unseen)


def _by_booleans(args: Any) -> bool:
    kinds = (torch.bool, torch.uint8)
    return any(isinstance(one, Tensor) and one.dtype in kinds for one in args[1])
