"""Handles signals as requests: a run notes them and saves at its next step; a second Ctrl-C ends it at once.

Signals go to whole process groups. Processes forked meanwhile (the loaders' workers) block them, and end when this
process tells them to or has gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from pdp.errors import SavedForRestart

ALWAYS = (signal.SIGTERM, signal.SIGUSR1)
UNLESS_IGNORED = (signal.SIGINT, signal.SIGHUP)  # a shell ignores these for background jobs, and so do we
HANDLED = (*ALWAYS, *UNLESS_IGNORED)
AGREE_CALLS = 10  # steps between agreements, each of which waits for every process and its device
AGREE_SECONDS = 2.0  # about the longest time between agreements where steps are slow
ONE_PRESS = 1.0  # seconds in which torchrun repeats a Ctrl-C that the terminal has already sent
INTERRUPTED = 130
TO_SAVE = 5.0  # seconds that a worker goes on serving a parent that told it to end
_CLOSE = 0  # sent through the pipe to close it; every other byte is a signal number

_listening: list[StopSignals] = []


class StopSignals:
    """While this context is open, signals do not kill this process outright.

    Inside `noting()` they are collected as requests; elsewhere they end the process as saved (exit code 75). Without
    `own_process`, that is inside somebody else's program, signals outside of `noting()` do what they did before, and a
    second Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self, own_process: bool = False) -> None:
        self.own_process = own_process
        self.name = ""
        self.wanted = False  # the main process wants a checkpoint now
        self.save_now = False  # all processes agreed to save one; set by `seen`
        self._noting = False
        self._former: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._former_fd = -1
        self._calls, self._next, self._since, self._asked = 0, 1, 0, time.monotonic()

    # ---------------------------------------------------------------- receiving

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        ignored = [one for one in UNLESS_IGNORED if signal.getsignal(one) is signal.SIG_IGN]
        for one in HANDLED:
            if one not in ignored:
                self._former[one] = signal.signal(one, self._receive)
        _listening.append(self)
        if not self.own_process:
            return self
        # Python runs a handler only between two of its own instructions; the pipe is written immediately.
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._former_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=_count_interrupts, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self not in _listening:
            return
        _listening.remove(self)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._former_fd)
        for one, former in self._former.items():
            # None stands for a handler that was not installed by Python code.
            signal.signal(one, signal.SIG_DFL if former is None else former)
        if self._pipe is not None:
            os.write(self._pipe[1], bytes([_CLOSE]))
            os.close(self._pipe[1])
            self._pipe = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """While this context is open, a signal is a request that `seen` reports."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._noting:
            if number == signal.SIGINT and self.name == "SIGINT" and not self.own_process:
                raise KeyboardInterrupt
            self.name = self.name or signal.Signals(number).name
            return
        former = self._former[signal.Signals(number)]
        if callable(former):  # KeyboardInterrupt's, or that of a job that notes how its processes ended
            former(number, frame)
            return
        if not self.own_process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # Not an exception: the code that runs now, such as the import of a library, could take it for its own failure.
        _end(f"{signal.Signals(number).name}: the same command goes on", SavedForRestart.exit_code)

    # ---------------------------------------------------------------- agreement between processes

    def seen(self, accelerator: Accelerator, step: int = 0) -> bool:
        """Whether any process received a signal. Several processes agree on it every few calls, so all must call it.

        They also agree on `save_now`: whether the main process has set `wanted`.
        """
        if accelerator.num_processes == 1:
            self.save_now = self.wanted
            return bool(self.name)
        self.save_now = False
        self._calls += 1
        if self._calls < self._next:
            return False
        now = time.monotonic()
        passed = (now - self._asked) / (self._calls - self._since)
        mine = [bool(self.name), self.wanted and accelerator.is_main_process, passed]
        told, save, seconds = accelerator.reduce(
            torch.tensor(mine, dtype=torch.float32, device=accelerator.device), "sum"
        ).tolist()
        between = AGREE_SECONDS * accelerator.num_processes / max(seconds, 1e-6)
        self._since, self._asked = self._calls, time.monotonic()
        self._next = self._calls + int(min(AGREE_CALLS, max(1.0, between)))
        self.save_now = save > 0
        if told and not self.name:
            self.name = "another process was signalled"
        return told > 0


def _count_interrupts(pipe: int) -> None:
    """Ends the process at its second Ctrl-C, whatever its main thread does, even waiting for a lost process."""
    pressed = 0.0
    quick = ONE_PRESS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
    while received := os.read(pipe, 1):
        number = received[0]
        if number == _CLOSE:
            break
        if number != signal.SIGINT:
            continue
        now = time.monotonic()
        if pressed and now - pressed >= quick:
            _end("interrupted twice: ended at once; the same command goes on from the last checkpoint", INTERRUPTED)
        pressed = pressed or now
    os.close(pipe)


def _end(words: str, code: int) -> None:
    """Ends this process and the workers that it forked; may be called from any thread."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"train: {words}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


# ---------------------------------------------------------------- processes forked meanwhile


def _before_fork() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def _after_fork_in_parent() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def _after_fork_in_child() -> None:
    """In a forked process: keeps signals blocked, and exits when its parent sends SIGTERM, as multiprocessing does."""
    if not _listening:
        return
    _listening.clear()
    signal.set_wakeup_fd(-1)  # it writes to the parent's pipe
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(HANDLED)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            time.sleep(TO_SAVE)  # the parent may be saving, if it signalled its whole group
            os._exit(0)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
