"""Averages the gradients of a method's trainable parameters over processes, which no wrapper (such as DDP) does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def average_gradients(extras: Sequence[nn.Parameter]) -> None:
    """Averages the gradient of every one of `extras` over all processes; a missing gradient counts as zero.

    Every process takes part for every parameter, whichever layers it used in this step. A parameter without a gradient
    on all processes keeps none, as with a single process.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not extras or not distributed or torch.distributed.get_world_size() == 1:
        return
    there = torch.tensor([float(one.grad is not None) for one in extras], device=extras[0].device)
    torch.distributed.all_reduce(there)
    missing = [one for one in extras if one.grad is None]
    for one in missing:
        one.grad = torch.zeros_like(one)
    for one in extras:
        assert one.grad is not None
        torch.distributed.all_reduce(one.grad)
        one.grad /= torch.distributed.get_world_size()
    if missing:  # only in this case is there a wait for the device
        nowhere = [one for one, count in zip(extras, there.tolist(), strict=True) if not count]
        for one in nowhere:
            one.grad = None
