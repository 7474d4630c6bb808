"""Sums over the weights of each unit, in float64, because a saliency's last digit can decide which unit is pruned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_PIECE = 1 << 17  # numbers processed at a time on the CPU, few enough to stay in its cache


def row_sums(tensor: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of `of` (an elementwise function) over each slice along dimension 0; (slices,), float64.

    Equal slices get exactly equal sums: each slice is copied into contiguous memory and summed by itself, whereas a sum
    over a strided tensor would treat its last slices differently. The order of the additions depends on the processor's
    vector width, but in float64 this changes a sum by much less than the precision of the saliency, which is rounded to
    float32.
    """
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)  # the order in which the slices lie in memory
    rows = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
    together = max(1, _PIECE // rows.shape[1]) if rows.is_cpu else max(1, len(rows))
    sums = [
        of(part.to(torch.float64, memory_format=torch.contiguous_format)).sum(dim=1) for part in rows.split(together)
    ]
    return sums[0] if len(sums) == 1 else torch.cat(sums)
