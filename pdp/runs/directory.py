"""A run's directory: its lock, the names of its files, and the history that grows line by line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, TextIO

from pdp.errors import Refusal
from pdp.runs.holder import Holder
from pdp.runs.record import RECORD, SCALES, TOKENIZER, write_json

LOCK_WAITS = (0.05, 0.1, 0.2)  # seconds between attempts, as a process that only tests the lock holds it briefly
# A killed process's loader workers share its lock, and look only every five seconds whether it is still there.
ORPHANS = 30.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_PARTLY_WRITTEN = re.compile(r"\.(?!holder\.).+\.(\d+(\.sha256)?|jsonl)")
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # errors of file systems without locks


class RunDirectory:
    """The directory of one run, which only one process can hold at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.jsonl"
        self.steps = path / "steps.jsonl"
        self.layers = path / "layers.csv"
        self.distributions = path / "distributions.npz"
        self.checkpoints = path / "checkpoint"
        self.before_pruning = self.checkpoints / "before_pruning.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        self.best_scales = self.checkpoints / "best_quantization.safetensors"
        self.weights = path / "model.safetensors"
        self.scales = path / SCALES  # of a quantized run
        self.ending = path / "ending.json"
        self._lock: TextIO | None = None
        self._holder: Holder | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has written its record."""
        return (self.path / RECORD).is_file()

    @property
    def begun(self) -> bool:
        """Whether an unfinished run has left something to resume from."""
        return not self.finished and any(self.checkpoints.glob("step-*.pt"))

    def hold(self) -> None:
        """Creates the directory and holds it until the process ends; raises `Refusal` if another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise Refusal(
                f"{self.path} cannot be made ({error.strerror}): give output_dir=<a folder that can>"
            ) from None
        locked = True
        waits, holder = iter(LOCK_WAITS), ""
        end = time.monotonic() + ORPHANS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    locked = False
                    break
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            wait = next(waits, None)
            if wait is None and not (_is_dead(holder) and time.monotonic() < end):
                self._lock.close()
                self._lock = None
                raise Refusal(f"{self.path} is in use by {holder}: wait for it, or choose another output_dir= or seed=")
            time.sleep(ORPHANS / 100 if wait is None else wait)
        try:
            self._holder = Holder(self.path)
            self._holder.take(locked)
            self.ending.unlink(missing_ok=True)
            if locked:  # elsewhere a process that has lost the run may still be writing
                self._clear_partly_written()
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {os.uname().nodename}")
            self._lock.flush()
        except BaseException:
            self._holder = None
            self._lock.close()
            self._lock = None
            raise

    def _clear_partly_written(self) -> None:
        """Removes what processes that were killed while they wrote have left, as `.record.json.4711`."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(".*"):
                if _PARTLY_WRITTEN.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)

    def check_held(self) -> None:
        """Raises `Stopped` if a process on another machine has taken the run, so that nothing of it is overwritten."""
        if self._holder:
            self._holder.check()

    def release(self) -> None:
        """Releases the directory."""
        if self._holder:
            self._holder.release()
            self._holder = None
        if self._lock:
            self._lock.close()
            self._lock = None

    def note_ending(self, how: str, reason: str = "") -> None:
        """Notes how the process that held the run ended: saved, stopped, refused, interrupted or failed.

        A run that is neither held nor finished and has no such note was killed.
        """
        write_json(self.ending, {"how": how, "reason": reason, "when": time.time()})

    def discard_if_nothing_begun(self) -> None:
        """Removes what a start created before it was refused, if no step was trained and nothing else is there."""
        own = {".lock", ".holder", self.config.name, self.ending.name, self.history.name, TOKENIZER}
        if self.finished or self.begun or self.read_history() or {one.name for one in self.path.iterdir()} - own:
            return
        shutil.rmtree(self.path / TOKENIZER, ignore_errors=True)
        for name in own - {TOKENIZER}:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another seed's run is beside it
            self.path.rmdir()
            self.path.parent.rmdir()

    def move_aside(self) -> Path:
        """Renames the existing directory, so that the run starts over; deletes nothing."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.before-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.before-{stamp}-{number}")
        self.path.rename(aside)
        return aside

    def write_history(self, line: dict[str, Any]) -> None:
        """Appends one evaluation to the history."""
        _append(self.history, line)

    def write_step(self, line: dict[str, Any]) -> None:
        """Appends a line to the history by steps."""
        _append(self.steps, line)

    def read_history(self) -> list[dict[str, Any]]:
        """Every complete line of the history."""
        return _read(self.history)

    def read_steps(self) -> list[dict[str, Any]]:
        """Every complete line of the history by steps."""
        return _read(self.steps)

    def cut_history(self, measured: int, step: int) -> None:
        """Drops evaluations after step `measured`, and lines by steps after `step`, which a resumed run repeats."""
        _cut(self.history, measured)
        if self.steps.is_file():
            _cut(self.steps, step)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _cut(path: Path, step: int) -> None:
    kept = [json.dumps(line) + "\n" for line in _read(path) if line["step"] <= step]
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(path)


def _is_dead(holder: str) -> bool:
    """Whether "process 12 on name" is of this machine and no longer runs."""
    found = re.fullmatch(r"process (\d+) on (.+)", holder)
    if not found or found[2] != os.uname().nodename:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # another user's
    try:  # a killed one that its parent has not collected yet
        return Path(f"/proc/{found[1]}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False
