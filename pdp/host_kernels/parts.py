"""Into how many parts the kernels' work is cut, one for each thread."""

from __future__ import annotations

import torch

_LEAST = 1 << 18  # numbers of a part: with fewer, threads wait for each other longer than they save
_MOST = 8  # parts, as each has to be handed over by itself


def parts_of(numbers: int) -> int:
    """No more than PyTorch has threads."""
    return 1 if numbers < 2 * _LEAST else min(torch.get_num_threads(), numbers // _LEAST, _MOST)
