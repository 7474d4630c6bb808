"""Recomputes BatchNorm's statistics for a model whose weights have just changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pdp.tasks.task import Task


@torch.no_grad()
def recalibrate(task: Task, model: nn.Module, loader: Iterable[Any], batches: int) -> int:
    """Replaces all running statistics by averages over at most `batches` batches; returns how many there were.

    Weights and training modes stay as they are. During the passes only BatchNorm is in training mode.
    """
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        return 0
    training = {module: module.training for module in model.modules()}
    momentum = [one.momentum for one in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: a plain average over all batches
        norm.training = True
    seen = 0
    try:
        # Read to the end, because a loader that is left early stays open.
        for batch in loader:
            if seen < batches:
                task.observe(model, batch)
                seen += 1
    finally:
        for norm, before in zip(norms, momentum, strict=True):
            norm.momentum = before
        for module, mode in training.items():
            module.training = mode
    return seen
