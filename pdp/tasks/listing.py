"""Listings of folders of images: kept for the next start, made once for a machine's processes, mapped not copied."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdp.environment import cache_folder
from pdp.tasks.folder_images import FolderPart, listing_hash, scan_folder

LEAST = 5000  # images from which on a listing is worth a file
SETTLED = 2.0  # seconds that folders must be older than their listing: a change in the same instant shows in no time
LOOKED_AT = 64  # files whose sizes are looked at again
_ARRAYS = ("paths", "labels", "sizes")
_FORMAT = 1

Listing = tuple[dict[str, FolderPart | None], bytes]  # parts by name, None where there is none; the hash of them all


def read_listing(root: str, names: Sequence[str], otherwise: str | None = None) -> Listing:
    """The parts `<root>/<name>/<class>/**` and their `listing_hash`; raises `Refusal` as `scan_folder` does.

    A listing that was kept is taken while every folder has the times it had then. Kept is one in the user's cache, or
    in `otherwise` where there is none that can be written; and none at all where neither can.
    """
    folder = cache_folder(otherwise)
    if folder is None:
        return _scan(root, names)[0]
    kept = KeptListing(folder / "listings", root, names)
    if found := kept.read():
        return found
    with kept.alone():
        if found := kept.read():  # another process has made it meanwhile
            return found
        begun = time.time()
        scanned, stamps = _scan(root, names)
        newest = max((stamp[1] for stamp in stamps), default=0) / 1e9
        if sum(len(part.labels) for part in scanned[0].values() if part) >= LEAST and begun - newest > SETTLED:
            with contextlib.suppress(OSError):
                kept.write(scanned, stamps)
                return kept.read() or scanned
    return scanned


def _scan(root: str, names: Sequence[str]) -> tuple[Listing, list[list[Any]]]:
    folders: list[str] = []
    stamps: list[list[Any]] = []

    def seen(folder: str) -> None:
        folders.append(folder)
        stamps.append(_stamp(folder))  # before it is read: what comes later is newer

    parts = {name: scan_folder(root, name, seen) for name in names}
    return (parts, listing_hash(*(part for part in parts.values() if part is not None))), stamps


def _stamp(folder: str) -> list[Any]:
    """What changes when an entry comes, goes or is renamed, or another folder takes its place."""
    found = os.stat(folder)
    return [folder, max(found.st_mtime_ns, found.st_ctime_ns), found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


class KeptListing:
    """One listing in the cache's folder: a description that names three arrays."""

    def __init__(self, folder: Path, root: str, names: Sequence[str]):
        self.folder, self.names = folder, list(names)
        self.given = os.path.expanduser(root)
        self.root = os.path.realpath(self.given)
        self.key = hashlib.sha256(json.dumps([self.root, self.names]).encode()).hexdigest()[:16]
        self.path = folder / f"{self.key}.json"

    def read(self) -> Listing | None:
        """The listing where it is whole and holds; nothing of it is copied into memory."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT or not self._holds(values["stamps"], values["absent"]):
                return None
            arrays = {name: np.load(self._array(values["token"], name), mmap_mode="r") for name in _ARRAYS}
            if any(len(array) != values["count"] for array in arrays.values()):
                return None
            if not self._same_sizes(arrays["paths"], arrays["sizes"]):
                return None
            parts: dict[str, FolderPart | None] = dict.fromkeys(self.names)
            for name, (classes, first, end) in values["parts"].items():
                parts[name] = FolderPart(name, classes, *(arrays[one][first:end] for one in _ARRAYS))
            return parts, bytes.fromhex(values["hash"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def _holds(self, stamps: list[list[Any]], absent: list[str]) -> bool:
        if any(os.path.isdir(os.path.join(self.root, name)) for name in absent):
            return False
        return all(_stamp(os.path.join(self.root, stamp[0]))[1:] == stamp[1:] for stamp in stamps)

    def _same_sizes(self, paths: np.ndarray, sizes: np.ndarray) -> bool:
        """Whether some of the files are as large as they were: one written anew in its place moves no folder's time."""
        some = np.linspace(0, len(paths) - 1, LOOKED_AT).astype(int)
        return all(os.stat(os.path.join(self.root, os.fsdecode(paths[one]))).st_size == sizes[one] for one in some)

    def write(self, listing: Listing, stamps: list[list[Any]]) -> None:
        """Keeps a listing in place of an earlier one; raises `OSError`."""
        parts, digest = listing
        token, found, first = secrets.token_hex(4), [part for part in parts.values() if part is not None], 0
        described = {}
        for part in found:
            described[part.name] = [part.classes, first, first + len(part.labels)]
            first += len(part.labels)
        former = list(self.folder.glob(f"{self.key}-*.npy"))
        for name in _ARRAYS:
            np.save(self._array(token, name), np.concatenate([np.asarray(getattr(part, name)) for part in found]))
        values = {
            "format": _FORMAT,
            "root": self.root,
            "token": token,
            "count": first,
            "hash": digest.hex(),
            "parts": described,
            "absent": [name for name, part in parts.items() if part is None],
            "stamps": [[os.path.relpath(stamp[0], self.given), *stamp[1:]] for stamp in stamps],
        }
        beside = self.path.with_name(f".{self.path.name}.{token}")
        beside.write_text(json.dumps(values), encoding="utf-8")
        beside.replace(self.path)
        for path in former:  # who has them mapped keeps them
            path.unlink(missing_ok=True)

    def _array(self, token: str, name: str) -> Path:
        return self.folder / f"{self.key}-{token}-{name}.npy"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process of this machine lists the same folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f"{self.key}.lock").open("a")
        except OSError:
            yield
            return
        with file:
            with contextlib.suppress(OSError):  # where the file system knows no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
