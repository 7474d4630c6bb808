"""Work that lets go of Python's lock, spread over threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def threads(count: int) -> ThreadPoolExecutor:
    """So many threads, the same ones as long as the number stays; a fork has none of its parent's and gets its own."""
    global _pool
    if _pool is None or _pool[:2] != (os.getpid(), count):
        _pool = (os.getpid(), count, ThreadPoolExecutor(count, thread_name_prefix="pdp"))
    return _pool[2]


def in_pieces(work: Callable[..., Any], pieces: int, *arguments: Any) -> None:
    """Calls `work(piece, pieces, *arguments)` for every piece, the first of them in this thread."""
    others = [threads(pieces - 1).submit(work, piece, pieces, *arguments) for piece in range(1, pieces)]
    work(0, pieces, *arguments)
    for one in others:
        one.result()
