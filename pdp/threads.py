"""Threads of this process, for work that releases Python's global lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

_held: tuple[int, int, ThreadPoolExecutor] | None = None
_forked = False


def forked() -> bool:
    """Whether this process was forked from one that had imported this package; threads are not there in a fork."""
    return _forked


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_note_fork)


def pool(count: int) -> ThreadPoolExecutor:
    """A pool of at least `count` threads, reused while it is large enough; a forked process creates its own."""
    global _held
    if _held is None or _held[0] != os.getpid() or _held[1] < count:
        _held = (os.getpid(), count, ThreadPoolExecutor(count, thread_name_prefix="pdp"))
    return _held[2]


def in_parts(work: Callable[..., Any], parts: int, helpers: int, *arguments: Any) -> None:
    """Calls `work(part, parts, *arguments)` for every part, in this thread and in `helpers` others.

    Each thread takes the next part when it has finished one. PyTorch's threads may keep a core busy for milliseconds
    while they wait for work, so a helper that has not started by the end is not waited for.
    """
    if not helpers:
        for part in range(parts):
            work(part, parts, *arguments)
        return
    left = iter(range(parts))

    def take() -> None:
        for part in left:
            work(part, parts, *arguments)

    others = [pool(helpers).submit(take) for _ in range(helpers)]
    try:
        take()
    finally:
        # Helpers that have started must finish, because they write to memory that the caller may free.
        came = [one for one in others if not one.cancel()]
        wait(came)
    for one in came:
        one.result()
