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


def in_pieces(work: Callable[..., Any], pieces: int, *arguments: Any) -> None:
    """Calls `work(piece, pieces, *arguments)` for every piece, the first of them in this thread."""
    others = [threads(pieces - 1).submit(work, piece, pieces, *arguments) for piece in range(1, pieces)]
    try:
        work(0, pieces, *arguments)
    finally:
        # They write to memory that the caller may let go of.
        wait(others)
    for one in others:
        one.result()
