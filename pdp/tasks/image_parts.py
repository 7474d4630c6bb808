"""A part of an image data set, whatever its storage: its classes, its bytes, and a hash that identifies its content."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from pdp.errors import Refusal
from pdp.tasks.image_decoding import check_decodes
from pdp.tasks.sampling import SPLIT_SEED, hashed

_WHOLE = 2**30  # bytes; a larger set is identified by a sample of its images
_SAMPLED, _HEAD = 2048, 2**16  # of a larger set: number of images in the sample, and bytes read of each

_SEEN: dict[bytes, tuple[bytes, dict[str, dict[int, str]]]] = {}  # kept because a sweep opens the same data repeatedly


class ImageSource(ABC):
    """Encoded images, numbered by row, which any process can read on request."""

    signature: bytes  # changes whenever one of the files is rewritten
    bytes_known: int  # approximate size of all images together, in bytes

    @abstractmethod
    def open(self, row: int) -> str | IO[bytes]:
        """What PIL can open: a file name or a file object."""

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded bytes; raises `OSError`."""

    def head(self, row: int, count: int) -> tuple[int, bytes]:
        """The size of the image in bytes, and its first `count` bytes; raises `OSError`."""
        content = self.read(row)
        return len(content), content[:count]

    @abstractmethod
    def name(self, row: int) -> str:
        """Where the image is stored, for messages."""


@dataclass
class ImagePart:
    """The images of one part: class numbers int64 (N,), and their rows in the source, int64 (N,)."""

    name: str
    classes: list[str]
    labels: np.ndarray
    rows: np.ndarray
    source: ImageSource

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: np.ndarray) -> ImagePart:
        """The images at these positions."""
        return replace(self, labels=self.labels[positions], rows=self.rows[positions])


class ImageFiles(ImageSource):
    """Image files below a folder; the relative `paths` are one array of bytes, whose memory forked workers share."""

    def __init__(self, root: str, paths: Sequence[bytes] | np.ndarray, sizes: Sequence[int], signature: bytes):
        # An array is used as it is, without a copy, also if it is a memory map of a file.
        self.paths = paths if isinstance(paths, np.ndarray) else np.array(paths, dtype=np.bytes_)
        self.root, self.sizes, self.signature = root, np.asarray(sizes, dtype=np.int64), signature
        self.bytes_known = int(self.sizes.sum())

    def open(self, row: int) -> str:
        """The file's name."""
        return os.path.join(self.root, os.fsdecode(self.paths[row]))

    def read(self, row: int) -> bytes:
        """The whole file."""
        with open(self.open(row), "rb") as file:
            return file.read()

    def head(self, row: int, count: int) -> tuple[int, bytes]:
        """The file's size and its first bytes."""
        with open(self.open(row), "rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(count)

    def name(self, row: int) -> str:
        """The path relative to the folder."""
        return os.fsdecode(self.paths[row])


def inspect(parts: Sequence[ImagePart]) -> tuple[bytes, dict[str, dict[int, str]]]:
    """A sha256 of the content of these parts, and for each part the images that cannot be read, with the reasons.

    The hash covers labels and images in their order, but not file names or the kind of storage. Up to 1 GiB of images,
    every byte is hashed and every image decoded. Beyond that only the first bytes of a fixed sample of images are
    hashed, and damaged images are not looked for.
    """
    key = hashlib.sha256(b"".join(part.name.encode() + part.source.signature + part.rows.tobytes() for part in parts))
    key.update(f"{_WHOLE} {_SAMPLED}".encode())
    if key.digest() not in _SEEN:
        _SEEN.clear()
        _SEEN[key.digest()] = _inspect(parts)
    return _SEEN[key.digest()]


def _inspect(parts: Sequence[ImagePart]) -> tuple[bytes, dict[str, dict[int, str]]]:
    whole = sum(part.source.bytes_known for part in parts) <= _WHOLE
    digest = hashlib.sha256(b"images 2 whole" if whole else b"images 2 sampled")
    damaged: dict[str, dict[int, str]] = {}

    def look(part: ImagePart, position: int) -> tuple[bytes, str | None]:
        row = int(part.rows[position])
        try:
            if not whole:
                size, first = part.source.head(row, _HEAD)
                return size.to_bytes(8, "big") + first, None
            content = part.source.read(row)
        except OSError as error:
            return b"", error.strerror or str(error) or type(error).__name__
        return content, _fault(content)

    with ThreadPoolExecutor(min(8, processors())) as pool:
        for part in parts:
            digest.update(f"{part.name} {len(part)}\n".encode() + part.labels.astype("<i8").tobytes())
            positions = np.arange(len(part))
            if not whole and len(part) > _SAMPLED:
                positions = np.sort(np.argsort(hashed(SPLIT_SEED, positions), kind="stable")[:_SAMPLED])
            for start in range(0, len(positions), 256):  # in chunks, to limit the memory in use
                chunk = positions[start : start + 256]
                for position, (content, fault) in zip(
                    chunk, pool.map(lambda one, part=part: look(part, one), chunk), strict=True
                ):
                    digest.update(hashlib.sha256(content).digest())
                    if fault is not None:
                        damaged.setdefault(part.name, {})[int(position)] = fault
    return digest.digest(), damaged


def _fault(content: bytes) -> str | None:
    if not content:
        return "it is empty"
    try:
        check_decodes(io.BytesIO(content))
    except Exception as error:  # decoders raise many types of exceptions for damaged files
        return type(error).__name__
    return None


def refuse_damaged(root: str, parts: Sequence[ImagePart], damaged: dict[str, dict[int, str]]) -> None:
    """Raises `Refusal` if there are damaged images; the message names the first of them."""
    for part in parts:
        for position, fault in damaged.get(part.name, {}).items():
            count = sum(map(len, damaged.values()))
            others = f", nor can {count - 1:,} others" if count > 1 else ""
            raise Refusal(
                f"{os.path.join(root, part.source.name(int(part.rows[position])))} cannot be read as an image ({fault})"
                f"{others}; repair or remove what is damaged, or leave such images out: data.unreadable=skip"
            )


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
