"""Who holds a run across machines: a note with a beat, as file locks do not reach everywhere from one to another."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from pdp.errors import Refusal, Stopped

BEAT = 5.0  # seconds between two beats
BEATS = 3  # how many may be missed; no clock of another machine is ever looked at


def this_machine() -> str:
    """What tells this machine, and its present start, from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


class Holder:
    """The note `.holder` in a run's folder: written and kept fresh while this process holds the run."""

    def __init__(self, folder: Path):
        self.path = folder / ".holder"
        self.token = secrets.token_hex(8)
        self.lost = ""  # who has taken the run from us
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, locked: bool) -> None:
        """Notes that this process holds the run; raises `Refusal` where another machine's process does.

        `locked` says that a file lock is held, which settles it among the processes of this machine.
        """
        there = self._read()
        if there and not (locked and there.get("machine") == this_machine()):
            self._refuse_if_it_beats(there)
        self._write(0)
        self._thread = threading.Thread(target=self._keep, name="holder", daemon=True)
        self._thread.start()

    def _refuse_if_it_beats(self, there: dict[str, Any]) -> None:
        end = time.monotonic() + BEATS * BEAT
        while time.monotonic() < end:
            time.sleep(BEAT / 10)
            now = self._read()
            if not now:
                return
            if now != there:
                raise Refusal(
                    f"{self.path.parent} is in use by {_who(now)}: wait for it, or choose another output_dir= or seed="
                )

    def check(self) -> None:
        """Raises `Stopped` where another process has taken the run meanwhile, as two that start at once may."""
        self._look()
        if self.lost:
            raise Stopped(f"{self.path.parent} was taken by {self.lost}: this process leaves the run to it")

    def release(self) -> None:
        """Takes the note away, if it is still this process's."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._look()
        if not self.lost:
            self.path.unlink(missing_ok=True)

    def _keep(self) -> None:
        number = 0
        while not self._ended.wait(BEAT):
            self._look()
            if self.lost:
                return
            number += 1
            with contextlib.suppress(OSError):  # a full disk is the training's to report
                self._write(number)

    def _look(self) -> None:
        there = self._read()
        if there and there.get("token") != self.token:
            self.lost = _who(there)

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            return values if isinstance(values, dict) else {}
        except (OSError, ValueError):
            return {}

    def _write(self, beat: int) -> None:
        values = {"host": os.uname().nodename, "pid": os.getpid(), "machine": this_machine()}
        beside = self.path.with_name(f".holder.{self.token}")
        try:
            beside.write_text(json.dumps(values | {"token": self.token, "beat": beat}), encoding="utf-8")
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)


def _who(values: dict[str, Any]) -> str:
    return f"process {values.get('pid')} on {values.get('host')}"
