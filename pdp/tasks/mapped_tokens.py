"""Tokens in a memory-mapped file, for texts that are too large for memory."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_READ = 2**22  # tokens read at a time


class MappedTokens:
    """Behaves like a one-dimensional int32 array of tokens, which lie in a file as uint16 or uint32; a slice is a copy.

    Pages that were read do not count as memory of the process for long: they are returned to the system, which keeps
    them in its file cache while there is room.
    """

    dtype = np.dtype(np.int32)

    def __init__(self, path: Path, stored: str, count: int, words: int, size: int, key: str):
        self.path, self.stored, self.count, self.words, self.key = path, stored, count, words, key
        self.size = size  # bytes of the text, UTF-8
        self._map: Any = np.memmap(path, dtype=stored, mode="r", shape=(count,)) if count else np.zeros(0, stored)

    def __reduce__(self) -> Any:
        return MappedTokens, (self.path, self.stored, self.count, self.words, self.size, self.key)

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int]:
        """(number of tokens,), as an array has it."""
        return (self.count,)

    def __getitem__(self, part: slice) -> np.ndarray:
        tokens = np.array(self._map[part], dtype=np.int32)
        # With a page that is read the system maps what lies around it, up to two megabytes: returned at once.
        if self.count:
            self._map._mmap.madvise(mmap.MADV_DONTNEED)
        return tokens

    def tolist(self) -> list[int]:
        """All tokens as a list, which needs memory for all of them."""
        return [int(token) for block in self.arrays() for token in block]

    def arrays(self) -> Iterator[np.ndarray]:
        """All tokens in order, as int32 arrays of at most 4 million each, read from the file without the map."""
        with self.path.open("rb") as file:
            while (read := np.fromfile(file, self.stored, _READ)).size:
                yield read.astype(np.int32)


def add_to_digest(digest: Any, array: np.ndarray | MappedTokens) -> None:
    """Adds dtype, shape and numbers of an array to a digest; mapped tokens give the same digest as an array of them."""
    digest.update(f"{array.dtype} {array.shape}".encode())
    if isinstance(array, MappedTokens):
        for one in array.arrays():
            digest.update(one.data)
    else:
        digest.update(np.ascontiguousarray(array).data)


def short_digest(start: str, arrays: tuple[Any, ...]) -> str:
    """A sha256 in hex digits that identifies these arrays; mapped tokens enter it by their key and are not read."""
    digest = hashlib.sha256(start.encode())
    for array in arrays:
        if isinstance(array, MappedTokens):
            digest.update(f"{array.key} {len(array)}".encode())
        else:
            add_to_digest(digest, array)
    return digest.hexdigest()
