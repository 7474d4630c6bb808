"""SIGTERM and SIGUSR1 as a request: save at the next look and leave, to be started again."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

HANDLED = (signal.SIGTERM, signal.SIGUSR1)
AGREE_STEPS = 10  # agreeing waits for every process and its device


class StopSignals:
    """Inside, the signals are noted instead of killing the process."""

    def __init__(self) -> None:
        self.name = ""
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for one in HANDLED:
                self._former[one] = signal.signal(one, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, former in self._former.items():
            signal.signal(one, former)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

    def seen(self, accelerator: Accelerator, step: int = 0) -> bool:
        """Whether any process was signalled; several processes agree on it, which they do every tenth step."""
        if accelerator.num_processes == 1:
            return bool(self.name)
        if step % AGREE_STEPS:
            return False
        told = bool(accelerator.reduce(torch.tensor(float(bool(self.name)), device=accelerator.device), "sum"))
        if told and not self.name:
            self.name = "another process was signalled"
        return told
