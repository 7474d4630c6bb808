"""Offline W&B runs on the disk: finding them, and sending each of them once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from pdp.errors import Stopped
from pdp.runs.store import is_held

MARK = ".synced"  # W&B puts a file with this ending beside what it has sent
_HEAD, _BLOCK, _RECORD = 7, 1 << 15, 7  # LevelDB's log format: bytes of a file's header, a block, a record's header
_WHOLE, _LAST = 1, 4  # record types: a record in one piece; the last piece of a record


def find_folders(folders: Sequence[Path]) -> list[Path]:
    """Every offline folder in or below `folders`, in the order in which they began; resumed ones after the first.

    Folders without a record, left by a run killed as it started, are skipped.
    """
    found = {one.parent.resolve() for folder in folders for one in folder.rglob("run-*.wandb") if whole_bytes(one)}
    return sorted((one for one in found if one.name.startswith("offline-run-")), key=lambda one: (one.name, str(one)))


def whole_bytes(file: Path) -> int:
    """The bytes up to the last complete record (a killed run's last one may be incomplete); 0 if there is none."""
    content = file.read_bytes()
    place, end = _HEAD, 0
    while place + _RECORD <= len(content):
        if _BLOCK - place % _BLOCK < _RECORD:  # the rest of a block is too small for a record's header
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        place += _RECORD + length
        if place > len(content) or not kind:
            break
        if kind in (_WHOLE, _LAST):
            end = place
    return end


def is_sent(folder: Path) -> bool:
    """Whether W&B has marked it as sent."""
    return any(folder.glob(f"*{MARK}"))


def is_growing(folder: Path) -> bool:
    """Whether the run that writes it is still running."""
    return is_held(folder.parent.parent)


def unsent(folders: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """What is to be sent, what was sent before, and what is left for later because its run is still running."""
    found = find_folders(folders)
    sent = [one for one in found if is_sent(one)]
    growing = [one for one in found if one not in sent and is_growing(one)]
    return [one for one in found if one not in sent and one not in growing], sent, growing


def send(folders: Sequence[Path], say: Callable[[str], None], options: Sequence[str] = ()) -> None:
    """Sends these folders by W&B's own command, one run at a time, with its parts in order.

    If W&B refuses a run, the others are sent all the same; then raises `Stopped` with the first reason.
    """
    left: list[tuple[Path, str]] = []
    for _, parts in groupby(sorted(folders, key=lambda one: (str(one.parent), one.name)), key=lambda one: one.parent):
        for folder in parts:
            reason = _send_one(folder, options)
            if reason:
                left.append((folder, reason))
                break  # a later part must not be sent before an earlier one
            say(f"sent: {folder}")
    if left:
        first, reason = left[0]
        words = f"W&B did not take {len(left)} run{'s' if len(left) > 1 else ''}, the first {first} ({reason})"
        raise Stopped(f"{words}: the same command sends the rest")


def _send_one(folder: Path, options: Sequence[str]) -> str:
    """Sends a folder; returns the reason if it failed, or ''."""
    for file in folder.glob("run-*.wandb"):
        whole = whole_bytes(file)
        if whole < file.stat().st_size:
            # W&B would send what comes before the incomplete record, end with an error, and send it again the next
            # time.
            content = file.read_bytes()
            file.with_name(file.name + ".torn").write_bytes(content)
            beside = file.with_name(f".{file.name}")
            beside.write_bytes(content[:whole])
            beside.replace(file)
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes", "--skip-synced", *options, str(folder)]
    with tempfile.TemporaryDirectory() as elsewhere:  # wandb writes its log to the working directory
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if not done.returncode and is_sent(folder):
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return " ".join(lines)[-300:] or f"exit {done.returncode}"
