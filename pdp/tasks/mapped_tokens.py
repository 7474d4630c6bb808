"""A row of tokens that lies in a memory-mapped file."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_GIVEN_BACK = 2**26  # bytes read through the map, after which its pages are given back
_READ = 2**22  # tokens


class MappedTokens:
    """Stands for an int32 row of tokens of a file of uint16 or uint32; a slice of it is a copy.

    What was read through the map does not stay in the process's memory: the system keeps it as long as there is room.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, path: Path, stored: str, count: int, words: int, size: int, key: str):
        self.path, self.stored, self.count, self.words, self.key = path, stored, count, words, key
        self.size = size  # bytes of the text, UTF-8
        self._map: Any = np.memmap(path, dtype=stored, mode="r", shape=(count,)) if count else np.zeros(0, stored)
        self._read = 0

    def __reduce__(self) -> Any:
        return MappedTokens, (self.path, self.stored, self.count, self.words, self.size, self.key)

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int]:
        """As of an array."""
        return (self.count,)

    def __getitem__(self, part: slice) -> np.ndarray:
        tokens = np.array(self._map[part], dtype=np.int32)
        self._read += tokens.size * self._map.itemsize + mmap.PAGESIZE
        if self._read > _GIVEN_BACK and self.count:
            self._map._mmap.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return tokens

    def tolist(self) -> list[int]:
        """All tokens, in memory."""
        return [int(token) for block in self.arrays() for token in block]

    def arrays(self) -> Iterator[np.ndarray]:
        """The tokens in order in int32 arrays of a few million, read past the map."""
        with self.path.open("rb") as file:
            while (read := np.fromfile(file, self.stored, _READ)).size:
                yield read.astype(np.int32)


def add_to_digest(digest: Any, array: np.ndarray | MappedTokens) -> None:
    """Type, shape and numbers of an array; of mapped tokens as if they were one in memory."""
    digest.update(f"{array.dtype} {array.shape}".encode())
    if isinstance(array, MappedTokens):
        for one in array.arrays():
            digest.update(one.data)
    else:
        digest.update(np.ascontiguousarray(array).data)


def short_digest(start: str, arrays: tuple[Any, ...]) -> str:
    """What tells these arrays from others without reading mapped tokens."""
    digest = hashlib.sha256(start.encode())
    for array in arrays:
        if isinstance(array, MappedTokens):
            digest.update(f"{array.key} {len(array)}".encode())
        else:
            add_to_digest(digest, array)
    return digest.hexdigest()
