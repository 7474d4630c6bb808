"""Over how many threads a kernel is spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import config, get_num_threads, set_num_threads

_MOST: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def call(threads: int, kernel: Callable[..., Any], *arguments: Any) -> None:
    """Runs a kernel that spreads its loops, over so many threads or as many as there are."""
    threads, before = min(threads, _MOST), get_num_threads()
    if before == threads:
        kernel(*arguments)
        return
    set_num_threads(threads)
    try:
        kernel(*arguments)
    finally:
        set_num_threads(before)
