"""Into how many pieces the kernels' work is cut, and how many threads help."""

from __future__ import annotations

import torch

_PIECE = 1 << 17  # numbers: some tens of microseconds of work
_MOST = 7  # helpers, as each has to be called by itself


def parts_of(numbers: int) -> tuple[int, int]:
    """Pieces and helpers, who are no more than PyTorch has threads beside this one."""
    pieces = max(1, numbers // _PIECE)
    return pieces, 0 if pieces < 4 else min(torch.get_num_threads() - 1, pieces - 1, _MOST)
