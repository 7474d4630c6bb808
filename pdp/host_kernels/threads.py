"""Over how many threads a kernel is spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numba import config, get_num_threads, set_num_threads

_MOST: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


_ALONE = 1 << 16  # numbers up to which one thread does as well: several wait for each other, long where cores are busy


def worth_spreading(numbers: int) -> bool:
    """Whether more than one thread should look at so many numbers."""
    return numbers > _ALONE and torch.get_num_threads() > 1


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
