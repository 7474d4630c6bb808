"""Evaluates a model: every distinct sample once, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from pdp.errors import Stopped
from pdp.sharded import is_sharded
from pdp.tasks.task import Task
from pdp.training.sharding import in_step

_HELD = 64  # batches whose observations stay on the device, because each copy to the host waits for it


def _fetched(held: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {key: torch.cat([one[key] for one in held]).cpu().numpy() for key in held[0]}


class AskedToStop(Exception):
    """An evaluation was aborted because the run must save itself now; what was measured so far is discarded."""


@torch.no_grad()
def measure(
    task: Task,
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    accelerator: Accelerator,
    stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """The task's metrics of `model` in evaluation mode over `loader`; the same on every process.

    Observations are sorted by sample index first, so that the number of processes cannot change the result. `stop` is
    called between batches. Raises `Stopped` if a sample was seen twice, and `AskedToStop` if `stop` returns True.
    """
    training = model.training
    model.eval()
    parts: list[dict[str, np.ndarray]] = []
    held: list[dict[str, torch.Tensor]] = []
    sharded = is_sharded(next(model.parameters(), None))
    # Of the last, short batch some processes may get nothing, so they agree whether to stop only before it.
    asked = max(0, len(loader) - 1) if stop and isinstance(loader, Sized) else 0
    try:
        batches = in_step(loader, accelerator) if sharded else ((batch, True) for batch in loader)
        for number, (batch, own) in enumerate(batches):
            if len(batch["index"]):
                observed = task.observe(model, batch)
                if own:
                    held.append(observed)
            if len(held) == _HELD:
                parts.append(_fetched(held))
                held = []
            if stop and number < asked and stop():
                raise AskedToStop
        if held:
            parts.append(_fetched(held))
    finally:
        model.train(training)
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    if not parts:
        raise Stopped("nothing to measure: the evaluation data has no readable sample")
    observations = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(observations["index"], kind="stable")
    observations = {key: values[order] for key, values in observations.items()}
    if len(np.unique(observations["index"])) != len(order):
        raise Stopped("a sample was measured twice: the evaluation loader must give each sample once")
    return task.metrics(observations)
