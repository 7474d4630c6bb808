"""A run's directory: who holds it, what lies where, and the history that grows line by line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from pdp.errors import Refusal
from pdp.runs.record import RECORD, write_json

LOCK_WAITS = (0.05, 0.1, 0.2)  # seconds; whoever only looks whether a run is held has its lock for a moment


class RunDirectory:
    """The place of one run; held by one process at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.jsonl"
        self.layers = path / "layers.csv"
        self.distributions = path / "distributions.npz"
        self.checkpoints = path / "checkpoint"
        self.before_pruning = self.checkpoints / "before_pruning.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        self.weights = path / "model.safetensors"
        self.ending = path / "ending.json"
        self._lock: TextIO | None = None

    @property
    def finished(self) -> bool:
        """Whether the run left its record."""
        return (self.path / RECORD).is_file()

    @property
    def begun(self) -> bool:
        """Whether an unfinished run left something to go on from."""
        return not self.finished and any(self.checkpoints.glob("step-*.pt"))

    def hold(self) -> None:
        """Makes the directory and locks it until the process ends; raises `Refusal` if another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("a+")
        for wait in (*LOCK_WAITS, None):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if wait is not None:
                    time.sleep(wait)
        else:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            raise Refusal(f"{self.path} is in use by {holder}: wait for it, or choose another output_dir= or seed=")
        self.ending.unlink(missing_ok=True)
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._lock.flush()

    def release(self) -> None:
        """Lets the directory go."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def note_ending(self, how: str, reason: str = "") -> None:
        """Says how the process that held the run ended: saved, stopped, refused, interrupted or failed.

        A run that is neither held nor finished and has no such note was killed.
        """
        write_json(self.ending, {"how": how, "reason": reason, "when": time.time()})

    def discard_if_nothing_begun(self) -> None:
        """Removes what a start made before it was refused, where no step was trained and nothing else lies there."""
        own = {".lock", self.config.name, self.ending.name, self.history.name}
        if self.finished or self.begun or self.read_history() or {one.name for one in self.path.iterdir()} - own:
            return
        for name in own:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another seed lies beside it
            self.path.rmdir()
            self.path.parent.rmdir()

    def move_aside(self) -> Path:
        """Renames what is there, so that the run starts over; nothing is deleted."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.name}.before-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.before-{stamp}-{number}")
        self.path.rename(aside)
        return aside

    def write_history(self, line: dict[str, Any]) -> None:
        """Appends one epoch."""
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_history(self) -> list[dict[str, Any]]:
        """Every whole line."""
        if not self.history.is_file():
            return []
        lines = []
        for text in self.history.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
        return lines

    def cut_history(self, epochs: int) -> None:
        """Drops lines from `epochs` on: a run that goes on from a checkpoint writes them again."""
        kept = [json.dumps(line) + "\n" for line in self.read_history() if line["epoch"] < epochs]
        beside = self.history.with_name(f".{self.history.name}")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(self.history)
