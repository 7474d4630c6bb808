"""Ranks of Slurm's jobs forked from a process that has imported everything; importing takes longer than such a run.

Only sweeps that are submitted inside `warm` have such ranks. The process that Slurm or a launcher starts is there, does
not import, and stands for its rank (warm/sitecustomize.py).
"""

import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pdp.benchmarks.forked_runs import CONTEXT

CLIENT = Path(__file__).resolve().parent / "warm"


class WarmRanks:
    """Makes ranks at a socket in `folder`, until it is closed."""

    def __init__(self, folder: Path):
        self._place = str(folder / "ranks")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._place)
        listener.listen(64)
        self._process = CONTEXT.Process(target=_serve, args=(listener,))
        self._process.start()
        listener.close()

    def close(self) -> None:
        """Ends the process that makes ranks; a rank ends with the process that stands for it."""
        self._process.kill()
        self._process.join()

    @contextmanager
    def warm(self) -> Iterator[None]:
        """What is submitted meanwhile has its ranks made here."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PDP_TEST_WARM_RANKS", self._place)
            patch.setenv("PYTHONPATH", os.pathsep.join([str(CLIENT), os.environ["PYTHONPATH"]]))
            yield


def _serve(listener: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that attend
    while True:
        asking, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(asking)
            os._exit(0)
        asking.close()


def _attend(asking: socket.socket) -> None:
    """Makes one rank and tells how it ended; kills it where the process that stands for it was killed."""
    size, descriptors, *_ = socket.recv_fds(asking, 4, 3)
    with asking.makefile("rb") as words:
        asked = json.loads(words.read(int.from_bytes(size, "big")))
    rank = os.fork()
    if rank == 0:
        asking.close()
        _become(descriptors, **asked)
    for one in descriptors:
        os.close(one)
    ended = os.pidfd_open(rank)
    with suppress(BrokenPipeError):
        asking.sendall(f"{rank}\n".encode())
    ready, _, _ = select.select([asking, ended], [], [])
    if ended not in ready:
        os.kill(rank, signal.SIGKILL)
    _, status = os.waitpid(rank, 0)
    with suppress(BrokenPipeError):
        asking.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(descriptors: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """What `python -m pdp.cluster.rank` does, in a session of its own."""
    os.setsid()
    for target, source in enumerate(descriptors):
        os.dup2(source, target)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["pdp.cluster.rank", *words]
    code: object = 1
    try:
        runpy.run_module("pdp.cluster.rank", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)
