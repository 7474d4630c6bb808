"""Which process holds a run, across machines: a note that is rewritten regularly, because file locks may be local."""

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

BEAT = 5.0  # seconds between two updates of the note
BEATS = 3  # updates that may be missed; clocks of other machines are never used


def this_machine() -> str:
    """An id of this machine since its last boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


class Holder:
    """The note `.holder` in a run's folder, updated regularly while this process holds the run."""

    def __init__(self, folder: Path):
        self.path = folder / ".holder"
        self.token = secrets.token_hex(8)
        self.lost = ""  # who has taken the run from this process
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, locked: bool) -> None:
        """Notes that this process holds the run; raises `Refusal` if a process on another machine holds it.

        `locked` says that this process has the file lock, which excludes other processes on the same machine.
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
        """Raises `Stopped` if another process has taken the run since, as can happen if two start at the same time."""
        self._look()
        if self.lost:
            raise Stopped(f"{self.path.parent} was taken by {self.lost}: this process leaves the run to it")

    def release(self) -> None:
        """Deletes the note if it is still this process's."""
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
            with contextlib.suppress(OSError):  # a full disk is reported by training
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
