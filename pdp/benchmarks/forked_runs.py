"""Runs of train.py in separate processes that start quickly, forked from a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")  # the server never trains, so its forks start clean
CONTEXT.set_forkserver_preload(["pdp.benchmarks.forked_ready"])


class Start:
    """One start of a command, in a session and process group of its own; its output goes to a file."""

    def __init__(self, words: Sequence[str], log: Path, environment: dict[str, str] | None = None):
        self.log, self.words = log, list(words)
        self._printed_before = log.stat().st_size if log.is_file() else 0  # by earlier starts of the command
        self.began = time.monotonic()
        self._process = CONTEXT.Process(target=_run, args=(self.words, log, environment or {}))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self._process.join(0)
        return self._process.exitcode

    def wait(self, seconds: float = 300.0) -> int:
        """Waits and returns the exit code; after `seconds` the process is killed and an `AssertionError` raised."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.to_group(signal.SIGKILL)
            self._process.join()
            raise AssertionError(f"still running after {seconds:.0f} s: {self.words}\n{self.output}")
        return self._process.exitcode

    def send(self, number: int) -> None:
        """Sends a signal to this process only."""
        if self.code is None:
            os.kill(self.pid, number)

    def to_group(self, number: int) -> None:
        """Sends a signal to the process and all that it forked, as a terminal, `timeout` and Slurm do."""
        if self.code is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # on a busy machine it may not have become the leader of a group yet
                os.kill(self.pid, number)

    @property
    def workers(self) -> list[int]:
        """The process ids of the data loaders' workers."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    @property
    def output(self) -> str:
        """What it has printed so far, without what earlier starts of the command have."""
        if not self.log.is_file():
            return ""
        return self.log.read_bytes()[self._printed_before :].decode(errors="replace")


def two_ranks(words: Sequence[str], log: Path) -> list[Start]:
    """Starts the two processes of one run, which connect on a free port; the names of their logs end in their ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return [Start(words, log.with_suffix(f".{rank}"), shared | one) for rank, one in enumerate(ranks)]


def _run(words: list[str], log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, file), (2, file)):
        os.dup2(source, target)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    from pdp.config.command_line import main
    from pdp.ranks import end_quietly

    code = main("train", words)
    end_quietly()
    raise SystemExit(code)
