"""Large texts, read piece by piece: files, or rows of a data set, divided into blocks that several processes can read.

The joined pieces are the lines that a small text would have: all kinds of line ends become \\n, blank lines are left
out, and each line ends with \\n. Only a line longer than `LONGEST` is given in several pieces.
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

LARGE = 16 * 2**20  # bytes: a text whose parts are larger together is read piece by piece
LONGEST = 2**16  # most characters in a piece
BLOCK = 8 * 2**20  # bytes of a block, which one process reads at a time; in a data set rows of about so many bytes
_READ = 2**20  # bytes read at a time
_LOOKS, _LOOK = 64, 4096  # number and bytes of the samples that tell a file from others of the same size and time
_LINE_END = re.compile(rb"[\r\n]")


class StreamedText(ABC):
    """A text divided into numbered blocks of whole lines; iterating over it gives all pieces in order."""

    blocks: int
    size: int  # bytes
    stamp: list[Any]  # plain values that change when the text does

    @abstractmethod
    def pieces(self, block: int) -> Iterator[str]:
        """The pieces of one block in order; raises `Refusal` if it cannot be read."""

    def __iter__(self) -> Iterator[str]:
        for block in range(self.blocks):
            yield from self.pieces(block)

    def sample(self, size: int) -> Iterator[str]:
        """Pieces of random blocks, always the same ones, about `size` bytes in all; all pieces of a smaller text."""
        count = max(1, min(self.blocks, int(self.blocks * size / max(1, self.size))))
        order = np.argsort(hashed(SPLIT_SEED, np.arange(self.blocks)), kind="stable")
        for block in np.sort(order[:count]):
            yield from self.pieces(int(block))


class FileText(StreamedText):
    """UTF-8 files, one after another; a line belongs to the block in which it begins."""

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
    """A column of a Hugging Face data set, which is memory-mapped itself; each row counts as one line."""

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
    """Turns text that arrives in arbitrary parts into whole lines, and long lines into pieces."""

    def __init__(self) -> None:
        self.held = ""  # the part of the present line that was not given yet
        self.given = False  # whether pieces of that line were given already

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
    """A row's text as the pieces of one line; no piece if it is blank."""
    if text.strip():
        *pieces, last = _cut(text.rstrip("\n\r"))
        yield from pieces
        yield f"{last}\n"


def _cut(line: str) -> Iterator[str]:
    """The line in pieces of at most `LONGEST` characters.

    A piece ends before a space that follows another character, because tokenizers that split at white space split
    there anyway: the tokens are those of the whole line. Without such a space a piece has `LONGEST` characters.
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
    """The position of the first line that begins at or after byte `offset`; `limit` if none begins before `limit`."""
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
    """Path, size, time of the last change, and a digest of samples of the content."""
    found = os.stat(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for place in np.linspace(0, max(0, found.st_size - _LOOK), _LOOKS).astype(np.int64):
            file.seek(int(place))
            digest.update(file.read(_LOOK))
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns, digest.hexdigest()]


def unreadable(path: Path, error: Exception) -> Refusal:
    """The refusal for a file that is not UTF-8 text."""
    return Refusal(f"{path} cannot be read as UTF-8 text ({str(error)[:100]}): change data.root")
