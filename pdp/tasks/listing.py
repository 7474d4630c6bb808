"""Cached listings of image folders: made once for all processes of a machine, kept for later starts, memory-mapped."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pdp.environment import cache_folder
from pdp.tasks.image_layouts import scan_folder
from pdp.tasks.image_parts import ImageFiles, ImagePart

LEAST = 5000  # with fewer images than this, a listing is not cached
SETTLED = 2.0  # seconds between a folder's time and its listing: a change in the same instant leaves no newer time
LOOKED_AT = 64  # number of files whose sizes are checked again
_ARRAYS = ("paths", "labels", "sizes")
_FORMAT = 1


def read_listing(root: str, place: str, part: str, otherwise: str | None = None) -> ImagePart:
    """The images `<root>/<place>/<class>/**`, equal to what `scan_folder` finds; raises the same `Refusal`.

    A cached listing is used as long as every folder has the same modification times as when it was made. It is kept in
    the user's cache folder, or in `otherwise` if that is not writable; if neither is, nothing is cached.
    """
    folder = cache_folder(otherwise)
    if folder is None:
        return scan_folder(root, place, part)
    kept = KeptListing(folder / "listings", root, place, part)
    if found := kept.read():
        return found
    with kept.alone():
        if found := kept.read():  # another process has made it in the meantime
            return found
        stamps: list[list[Any]] = []
        begun = time.time()
        # The time of a folder is taken before it is read, so that any later change has a newer time.
        scanned = scan_folder(root, place, part, lambda folder: stamps.append(_stamp(folder)))
        newest = max(stamp[1] for stamp in stamps) / 1e9
        if len(scanned) >= LEAST and begun - newest > SETTLED:
            with contextlib.suppress(OSError):
                kept.write(scanned, stamps)
                return kept.read() or scanned
    return scanned


def _stamp(folder: str) -> list[Any]:
    """Times and inode of a folder, which change if an entry is added, removed or renamed, or the folder is replaced."""
    found = os.stat(folder)
    return [folder, max(found.st_mtime_ns, found.st_ctime_ns), found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


class KeptListing:
    """One listing in the cache folder: a JSON description that names three array files."""

    def __init__(self, folder: Path, root: str, place: str, part: str):
        self.folder, self.part = folder, part
        self.given = os.path.expanduser(root)
        self.root = os.path.realpath(self.given)
        self.key = hashlib.sha256(json.dumps([self.root, place, part]).encode()).hexdigest()[:16]
        self.path = folder / f"{self.key}.json"

    def read(self) -> ImagePart | None:
        """The listing if complete and up to date, else None; its paths and sizes are memory-mapped, not copied."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT or not self._holds(values["stamps"]):
                return None
            arrays = {name: np.load(self._array(values["token"], name), mmap_mode="r") for name in _ARRAYS}
            if any(len(array) != values["count"] for array in arrays.values()):
                return None
            if not self._same_sizes(arrays["paths"], arrays["sizes"]):
                return None
            source = ImageFiles(self.given, arrays["paths"], arrays["sizes"], bytes.fromhex(values["signature"]))
            labels = arrays["labels"].astype(np.int64)
            return ImagePart(self.part, values["classes"], labels, np.arange(values["count"]), source)
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def _holds(self, stamps: list[list[Any]]) -> bool:
        return all(_stamp(os.path.join(self.root, stamp[0]))[1:] == stamp[1:] for stamp in stamps)

    def _same_sizes(self, paths: np.ndarray, sizes: np.ndarray) -> bool:
        """Whether a sample of the files still have their sizes: rewriting a file does not change its folder's time."""
        some = np.linspace(0, len(paths) - 1, LOOKED_AT).astype(int)
        return all(os.stat(os.path.join(self.root, os.fsdecode(paths[one]))).st_size == sizes[one] for one in some)

    def write(self, part: ImagePart, stamps: list[list[Any]]) -> None:
        """Saves a listing and removes an earlier one; raises `OSError`."""
        assert isinstance(part.source, ImageFiles)
        token, former = secrets.token_hex(4), list(self.folder.glob(f"{self.key}-*.npy"))
        for name, array in zip(_ARRAYS, (part.source.paths, part.labels, part.source.sizes), strict=True):
            np.save(self._array(token, name), array)
        values = {
            "format": _FORMAT,
            "root": self.root,
            "token": token,
            "count": len(part),
            "classes": part.classes,
            "signature": part.source.signature.hex(),
            "stamps": [[os.path.relpath(stamp[0], self.given), *stamp[1:]] for stamp in stamps],
        }
        beside = self.path.with_name(f".{self.path.name}.{token}")
        beside.write_text(json.dumps(values), encoding="utf-8")
        beside.replace(self.path)
        for path in former:  # processes that have them mapped can go on reading them
            path.unlink(missing_ok=True)

    def _array(self, token: str, name: str) -> Path:
        return self.folder / f"{self.key}-{token}-{name}.npy"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While this context is open, no other process of this machine lists the same folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f"{self.key}.lock").open("a")
        except OSError:
            yield
            return
        with file:
            with contextlib.suppress(OSError):  # the file system may not support locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
