"""A function in several processes of torch.distributed, forked after one import of what they need.

torchrun would start Python for each of them, which imports for five seconds and then works for one.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdp.benchmarks.forked_runs import CONTEXT

PATIENCE = 300  # seconds


def in_ranks(processes: int, work: Callable[..., Any], *arguments: Any, log: Path, imports: Sequence[str] = ()) -> None:
    """Calls `work(*arguments)` in every rank; what they print goes to `log`, which a failure shows."""
    first = CONTEXT.Process(target=_fork, args=(processes, work, arguments, log, imports))
    first.start()
    first.join(PATIENCE + 60)
    if first.exitcode is None:
        first.kill()
    assert first.exitcode == 0, log.read_text()[-3000:]


def _fork(processes: int, work: Callable[..., Any], arguments: tuple, log: Path, imports: Sequence[str]) -> None:
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    import torch

    torch.set_num_threads(1)
    for name in imports:
        importlib.import_module(name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    fork = multiprocessing.get_context("fork")  # nothing here has started a thread
    ranks = [fork.Process(target=_rank, args=(rank, work, arguments)) for rank in range(processes)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(PATIENCE)
        if one.exitcode != 0:
            for other in ranks:
                other.kill()
            raise SystemExit(1)


def _rank(rank: int, work: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    work(*arguments)
