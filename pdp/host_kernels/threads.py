"""Over how many threads a kernel is spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numba import config, get_num_threads, set_num_threads

_MOST: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def call(kernel: Callable[..., Any], *arguments: Any) -> None:
    """Runs a kernel that spreads its loops, over no more threads than PyTorch has."""
    threads = torch.get_num_threads()
    if threads >= _MOST:
        kernel(*arguments)
        return
    before = get_num_threads()
    set_num_threads(threads)
    try:
        kernel(*arguments)
    finally:
        set_num_threads(before)
