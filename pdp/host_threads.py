"""Work that lets go of Python's lock, spread over threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def threads(count: int) -> ThreadPoolExecutor:
    """At least so many threads, the same ones where they suffice; a fork has none of its parent's and gets its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < count:
        _pool = (os.getpid(), count, ThreadPoolExecutor(count, thread_name_prefix="pdp"))
    return _pool[2]


def in_pieces(work: Callable[..., Any], pieces: int, helpers: int, *arguments: Any) -> None:
    """Calls `work(piece, pieces, *arguments)` for every piece, in this thread and so many others.

    Each takes the next piece when it has done one. Threads of PyTorch that wait for work in a loop keep a core busy for
    milliseconds: a helper that has not come by the end is not waited for.
    """
    left = iter(range(pieces))

    def take() -> None:
        for piece in left:
            work(piece, pieces, *arguments)

    others = [threads(helpers).submit(take) for _ in range(helpers)]
    try:
        take()
    finally:
        # They write to memory that the caller may let go of.
        came = [one for one in others if not one.cancel()]
        wait(came)
    for one in came:
        one.result()
