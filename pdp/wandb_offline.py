"""Runs that W&B kept on the disk: which there are, and sending each of them once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pdp.errors import Stopped
from pdp.run_store import is_held

MARK = ".synced"  # W&B puts a file of this ending beside what it has sent
_AT_ONCE = 50  # folders of one call, so that a command line stays short


def find_folders(folders: Sequence[Path]) -> list[Path]:
    """Every offline folder in or below `folders`, in the order in which they began, a resumed run's after its first."""
    found = {one.parent.resolve() for folder in folders for one in folder.rglob("run-*.wandb")}
    return sorted((one for one in found if one.name.startswith("offline-run-")), key=lambda one: (one.name, str(one)))


def is_sent(folder: Path) -> bool:
    """Whether W&B has marked it as sent."""
    return any(folder.glob(f"*{MARK}"))


def is_growing(folder: Path) -> bool:
    """Whether the run that writes it still runs."""
    return is_held(folder.parent.parent)


def unsent(folders: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """What is to be sent, what was sent before, and what is left for later because its run still runs."""
    found = find_folders(folders)
    sent = [one for one in found if is_sent(one)]
    growing = [one for one in found if one not in sent and is_growing(one)]
    return [one for one in found if one not in sent and one not in growing], sent, growing


def send(folders: Sequence[Path], say: Callable[[str], None], options: Sequence[str] = ()) -> None:
    """Sends these folders with W&B's own command, which makes one run of those with one id; raises `Stopped`."""
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes", "--skip-synced", *options]
    for first in range(0, len(folders), _AT_ONCE):
        part = [str(folder) for folder in folders[first : first + _AT_ONCE]]
        with tempfile.TemporaryDirectory() as elsewhere:  # it writes its log to the working directory
            done = subprocess.run(
                [*command, *part], cwd=elsewhere, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        left = [folder for folder in part if not is_sent(Path(folder))]
        for folder in part:
            if folder not in left:
                say(f"sent: {folder}")
        if done.returncode or left:
            lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            reason = " ".join(lines)[:300] or f"exit {done.returncode}"
            raise Stopped(f"W&B did not take {len(left)} of {len(part)} ({reason}): the same command sends the rest")
