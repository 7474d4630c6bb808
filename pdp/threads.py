"""Threads of this process for work that releases Python's global lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

_held: tuple[int, int, ThreadPoolExecutor] | None = None


def pool(count: int) -> ThreadPoolExecutor:
    """A pool of at least `count` threads, the same one while it suffices; a forked process makes its own."""
    global _held
    if _held is None or _held[0] != os.getpid() or _held[1] < count:
        _held = (os.getpid(), count, ThreadPoolExecutor(count, thread_name_prefix="pdp"))
    return _held[2]


def in_parts(work: Callable[..., Any], parts: int, helpers: int, *arguments: Any) -> None:
    """Calls `work(part, parts, *arguments)` for every part, in this thread and `helpers` others.

    Each takes the next part when it has done one. Threads of PyTorch that wait for work in a loop keep a core busy for
    milliseconds: a helper that has not come by the end is not waited for.
    """
    left = iter(range(parts))

    def take() -> None:
        for part in left:
            work(part, parts, *arguments)

    others = [pool(helpers).submit(take) for _ in range(helpers)]
    try:
        take()
    finally:
        # They write to memory that the caller may free.
        came = [one for one in others if not one.cancel()]
        wait(came)
    for one in came:
        one.result()
