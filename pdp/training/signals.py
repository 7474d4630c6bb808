"""Signals as requests: while a run trains they are noted, and it saves at the next step; a second Ctrl-C ends at once.

Signals reach whole process groups: what this process forks meanwhile (the loaders' workers) hears none of them, and
ends when this process asks it to or is gone.
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
UNLESS_IGNORED = (signal.SIGINT, signal.SIGHUP)  # as a shell ignores them for what runs in the background
HANDLED = (*ALWAYS, *UNLESS_IGNORED)
AGREE_CALLS = 10  # agreeing waits for every process and its device
AGREE_SECONDS = 2.0  # ... and is not put off for longer than about this where steps are slow
ONE_PRESS = 1.0  # seconds in which torchrun passes on a Ctrl-C that the terminal has sent already
INTERRUPTED = 130
TO_SAVE = 5.0  # seconds that a worker still serves a parent that has asked it to end
_CLOSE = 0  # on the pipe, where every other byte is a signal's number

_listening: list[StopSignals] = []


class StopSignals:
    """Inside, signals do not kill this process: `noting()` collects them, elsewhere they end it as saved (exit 75).

    Without `own_process`, in somebody's own program, signals are what they were outside of `noting()`, and a second
    Ctrl-C is Python's KeyboardInterrupt.
    """

    def __init__(self, own_process: bool = False) -> None:
        self.own_process = own_process
        self.name = ""
        self.wanted = False  # whether the main process wants a checkpoint now
        self.save_now = False  # whether all do: known after `seen`
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
        # Python runs a handler between two of its own instructions; the pipe is written at once.
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
            # A handler that no Python code installed is None.
            signal.signal(one, signal.SIG_DFL if former is None else former)
        if self._pipe is not None:
            os.write(self._pipe[1], bytes([_CLOSE]))
            os.close(self._pipe[1])
            self._pipe = None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, a signal is a request that `seen` tells of."""
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
        if callable(former):  # Ctrl-C's own, or that of a job which notes how its processes ended
            former(number, frame)
            return
        if not self.own_process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # No exception: whatever runs now, the import of a library too, would take it for its own failure.
        _end(f"{signal.Signals(number).name}: the same command goes on", SavedForRestart.exit_code)

    # ---------------------------------------------------------------- agreeing

    def seen(self, accelerator: Accelerator, step: int = 0) -> bool:
        """Whether any process was signalled. Several processes agree on it every few calls, which all of them make.

        With it they agree on `save_now`: whether the main process said that it is `wanted`.
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
    """Ends the process at its second Ctrl-C, whatever its main thread is in: a wait for a process that is gone too."""
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
    """Ends this process and the workers it forked, from any thread."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"train: {words}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


# ---------------------------------------------------------------- what is forked meanwhile


def _before_fork() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def _after_fork_in_parent() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def _after_fork_in_child() -> None:
    """The signals stay blocked, and the parent's SIGTERM, with which multiprocessing ends a process, is looked for."""
    if not _listening:
        return
    _listening.clear()
    signal.set_wakeup_fd(-1)  # the parent's pipe
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(HANDLED)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            time.sleep(TO_SAVE)  # it may have signalled its whole group, itself too
            os._exit(0)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
