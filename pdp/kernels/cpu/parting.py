"""How many parts a kernel's work is divided into, and how many extra threads help."""

from __future__ import annotations

import torch

_PART = 1 << 17  # numbers in a part: some tens of microseconds of work
_MOST = 7  # most helper threads, because waking each one takes time


def parting(numbers: int) -> tuple[int, int]:
    """The number of parts and of helper threads; never more helpers than PyTorch has threads besides this one."""
    parts = max(1, numbers // _PART)
    return parts, 0 if parts < 4 else min(torch.get_num_threads() - 1, parts - 1, _MOST)
