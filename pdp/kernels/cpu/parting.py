"""Into how many parts the kernels' work is cut, and how many threads help."""

from __future__ import annotations

import torch

_PART = 1 << 17  # numbers of a part: some tens of microseconds of work
_MOST = 7  # helpers at most, as waking each takes time


def parting(numbers: int) -> tuple[int, int]:
    """Parts and helpers, who are no more than PyTorch has threads beside this one."""
    parts = max(1, numbers // _PART)
    return parts, 0 if parts < 4 else min(torch.get_num_threads() - 1, parts - 1, _MOST)
