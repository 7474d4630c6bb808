"""Texts that are read piece by piece: files of any size and rows of a data set, in blocks that processes share out.

The pieces of a text joined are its lines as a small text has them: universal line ends, blank lines left out, a line
end after each. Only a line longer than `LONGEST` comes in several pieces.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pdp.errors import Refusal
from pdp.tasks.sampling import SPLIT_SEED, hashed

LARGE = 16 * 2**20  # bytes of all parts of a text, above which it is read piece by piece
LONGEST = 2**16  # characters of a piece
BLOCK = 8 * 2**20  # bytes, or rows of about so many, that one process takes at a time
_READ = 2**20  # bytes
_LOOKS, _LOOK = 64, 4096  # parts of a file that tell it from another of the same size and time
_LINE_END = re.compile(rb"[\r\n]")


class StreamedText(ABC):
    """A text in numbered blocks, each of whole lines; iterating gives all pieces in order."""

    blocks: int
    size: int  # bytes
    stamp: list[Any]  # what changes when the text does; plain values

    @abstractmethod
    def pieces(self, block: int) -> Iterator[str]:
        """The pieces of one block; raises `Refusal` where it cannot be read."""

    def __iter__(self) -> Iterator[str]:
        for block in range(self.blocks):
            yield from self.pieces(block)

    def sample(self, size: int) -> Iterator[str]:
        """Pieces of some blocks, of about `size` bytes together, the same ones each time; all of a smaller text."""
        count = max(1, min(self.blocks, int(self.blocks * size / max(1, self.size))))
        order = np.argsort(hashed(SPLIT_SEED, np.arange(self.blocks)), kind="stable")
        for block in np.sort(order[:count]):
            yield from self.pieces(int(block))


class FileText(StreamedText):
    """UTF-8 files, one after the other. A line belongs to the block in which it begins."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self.sizes = [os.stat(path).st_size for path in self.paths]
        self.size = sum(self.sizes)
        self._starts = [(number, start) for number, size in enumerate(self.sizes) for start in range(0, size, BLOCK)]
        self.blocks = len(self._starts)
        self.stamp = [["file", *_stamp(path)] for path in self.paths]

    def pieces(self, block: int) -> Iterator[str]:
        number, start = self._starts[block]
        path = self.paths[number]
        try:
            with path.open("rb") as file:
                yield from self._pieces(file, start, min(start + BLOCK, self.sizes[number]), self.sizes[number])
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(path, error) from None

    def _pieces(self, file: BinaryIO, start: int, end: int, size: int) -> Iterator[str]:
        first = _line_start(file, start, end)
        if first >= end:
            return
        last = _line_start(file, end, size)
        decoder = io.IncrementalNewlineDecoder(getincrementaldecoder("utf-8")(), translate=True)
        cutter = _Cutter()
        file.seek(first)
        left = last - first
        while left:
            read = file.read(min(_READ, left))
            if not read:
                break
            left -= len(read)
            yield from cutter.feed(decoder.decode(read, final=not left))
        yield from cutter.end()


class RowsText(StreamedText):
    """A column of a Hugging Face data set, which lies in memory-mapped files of its own; a row is a line."""

    def __init__(self, rows: Any, column: str):
        self.rows, self.column = rows, column
        self.size = int(rows.data.nbytes)
        self.per_block = max(1, int(len(rows) * BLOCK / max(1, self.size)))
        self.blocks = -(-len(rows) // self.per_block)
        self.stamp = [["rows", str(rows._fingerprint), len(rows), column]]

    def pieces(self, block: int) -> Iterator[str]:
        first = block * self.per_block
        for number in range(first, min(first + self.per_block, len(self.rows))):
            text = self.rows[number][self.column]
            if isinstance(text, str):
                yield from pieces_of(text)


class _Cutter:
    """Takes text as it is read and gives whole lines, long ones in pieces."""

    def __init__(self) -> None:
        self.held = ""  # of the line that has not ended
        self.given = False  # whether pieces of it have been given

    def feed(self, text: str) -> Iterator[str]:
        *lines, rest = text.split("\n")
        for line in lines:
            yield from self._ended(self.held + line)
        self.held += rest
        if len(self.held) > 2 * LONGEST and (self.given or self.held.strip()):
            pieces = list(_cut(self.held))
            self.held = pieces.pop()
            self.given = True
            yield from pieces

    def end(self) -> Iterator[str]:
        if self.held or self.given:
            yield from self._ended(self.held)

    def _ended(self, line: str) -> Iterator[str]:
        if self.given or line.strip():
            *pieces, last = _cut(line)
            yield from pieces
            yield f"{last}\n"
        self.held, self.given = "", False


def pieces_of(text: str) -> Iterator[str]:
    """A row as a line: nothing where it is blank."""
    if text.strip():
        *pieces, last = _cut(text.rstrip("\n\r"))
        yield from pieces
        yield f"{last}\n"


def _cut(line: str) -> Iterator[str]:
    """The line in pieces of at most `LONGEST` characters.

    A cut lies before white space that follows something else, where tokenizers that split at white space part words
    anyway, so that the tokens stay those of the whole line. Where there is none it lies after `LONGEST` characters.
    """
    start = 0
    while len(line) - start > LONGEST:
        at = line.rfind(" ", start + 1, start + LONGEST)
        while at > start and line[at - 1].isspace():
            at = line.rfind(" ", start + 1, at)
        end = at if at > start else start + LONGEST
        yield line[start:end]
        start = end
    yield line[start:]


def _line_start(file: BinaryIO, offset: int, limit: int) -> int:
    """Where the first line begins at or after `offset`; `limit` where none does before it."""
    if offset == 0 or offset >= limit:
        return min(offset, limit)
    place = offset - 1
    file.seek(place)
    while place < limit and (read := file.read(_READ)):
        if found := _LINE_END.search(read):
            after = place + found.end()
            if found.group() == b"\r":
                file.seek(after)
                after += file.read(1) == b"\n"
            return min(after, limit)
        place += len(read)
    return limit


def _stamp(path: Path) -> list[Any]:
    """Place, size, time and a sample of the content."""
    found = os.stat(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for place in np.linspace(0, max(0, found.st_size - _LOOK), _LOOKS).astype(np.int64):
            file.seek(int(place))
            digest.update(file.read(_LOOK))
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns, digest.hexdigest()]


def unreadable(path: Path, error: Exception) -> Refusal:
    """What is said of a file that is no text."""
    return Refusal(f"{path} cannot be read as UTF-8 text ({str(error)[:100]}): change data.root")
