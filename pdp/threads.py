"""Work that lets go of Python's lock, spread over threads of this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

_held: tuple[int, int, ThreadPoolExecutor] | None = None


def pool(count: int) -> ThreadPoolExecutor:
    """At least so many threads, the same ones where they suffice; a fork has none of its parent's and gets its own."""
    global _held
    if _held is None or _held[0] != os.getpid() or _held[1] < count:
        _held = (os.getpid(), count, ThreadPoolExecutor(count, thread_name_prefix="pdp"))
    return _held[2]


def in_parts(work: Callable[..., Any], parts: int, helpers: int, *arguments: Any) -> None:
    """Calls `work(part, parts, *arguments)` for every part, in this thread and so many others.

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
        # They write to memory that the caller may let go of.
        came = [one for one in others if not one.cancel()]
        wait(came)
    for one in came:
        one.result()
