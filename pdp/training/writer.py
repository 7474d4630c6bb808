"""Writes checkpoints in the background: training waits only for the copy to host memory, a thread does the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pdp.runs.checkpoint import save_checkpoint


def on_host(state: Any) -> Any:
    """A copy of nested dicts and lists whose tensors are in host memory and share none with the original."""
    copied = _copied(state)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()  # the copies are asynchronous
    return copied


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.clone() if value.device.type == "cpu" else value.to("cpu", non_blocking=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(one) for one in value)
    return value


class CheckpointWriter:
    """Writes one checkpoint at a time into `folder`; an error in its thread is raised at the next call."""

    def __init__(self, folder: Path, minutes: float = 0.0, guard: Callable[[], None] | None = None):
        self.folder, self.minutes = folder, minutes
        self.guard = guard or (lambda: None)  # raises if this process may no longer write
        self.copy_seconds = 0.0  # how long training waited for the last copy
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether `minutes` have passed since the last checkpoint and it is written; never with 0 minutes."""
        return bool(self.minutes) and time.monotonic() - self._last >= 60 * self.minutes and not self.busy

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: dict[str, Any], step: int) -> None:
        """Copies the state after optimizer step `step` and begins to write it; waits for an earlier one first."""
        self.wait()
        begun = time.perf_counter()
        copied = on_host(state)
        self.copy_seconds = time.perf_counter() - begun
        self._last = time.monotonic()
        # Not a daemon thread, so that it can finish after an exception elsewhere or at the interpreter's end.
        self._thread = threading.Thread(target=self._write, args=(copied, step), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last checkpoint is written; raises `Stopped` if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def end(self) -> None:
        """Waits until nothing is being written; ignores its errors, for use when something else ends the run."""
        if self._thread is not None:
            self._thread.join()
        self._error = None

    def check(self) -> None:
        """Raises the error that occurred so far, if any, without waiting."""
        if self._error is not None:
            self.wait()

    def _write(self, state: dict[str, Any], step: int) -> None:
        try:
            self.guard()
            save_checkpoint(self.folder, state, step)
        except BaseException as error:  # any error is passed on to training
            self._error = error
