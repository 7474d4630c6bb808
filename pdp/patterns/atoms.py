"""Slices of parameters ("atoms"): which can only be removed together, and which must stay and why."""

from __future__ import annotations

import numpy as np


class Atoms:
    """A growing set of atoms, numbered from 0, with ties between those that go together and reasons to stay."""

    def __init__(self) -> None:
        self.count = 0
        self.blocks: dict[tuple[str, int], tuple[int, int]] = {}  # (kind, parameter) -> (first atom, number of atoms)
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._pins: list[tuple[np.ndarray, str]] = []

    def block(self, key: tuple[str, int], size: int) -> int:
        """The first of the `size` consecutive atoms of `key`; they are created at the first request."""
        if key not in self.blocks:
            self.blocks[key] = (self.count, size)
            self.count += size
        return self.blocks[key][0]

    def tie(self, one: np.ndarray, other: np.ndarray) -> None:
        """one[i] and other[i] can only be removed together."""
        apart = one != other
        if apart.any():
            pairs = np.unique((one[apart].astype(np.int64) << 32) | other[apart])
            self._ties.append((pairs >> 32, pairs & 0xFFFFFFFF))

    def pin(self, atoms: np.ndarray, reason: str) -> None:
        """These atoms must stay; if there are several reasons, the first one counts."""
        if atoms.size:
            self._pins.append((atoms, reason))

    def classes(self) -> np.ndarray:
        """For each atom the smallest atom that it is tied to, directly or through others."""
        parent = np.arange(self.count)
        if not self._ties:
            return parent
        one, other = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        while True:
            left, right = parent[one], parent[other]
            apart = left != right
            if not apart.any():
                return parent
            low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
            np.minimum.at(parent, high, low)
            while True:
                above = parent[parent]
                if (above == parent).all():
                    break
                parent = above

    def reasons(self, classes: np.ndarray) -> dict[int, tuple[int, str]]:
        """By class: the first reason to stay, and its position among all reasons."""
        first = np.full(self.count, len(self._pins))
        for place in reversed(range(len(self._pins))):
            first[classes[self._pins[place][0]]] = place
        pinned = np.nonzero(first < len(self._pins))[0]
        places = first[pinned].tolist()
        return {one: (place, self._pins[place][1]) for one, place in zip(pinned.tolist(), places, strict=True)}
