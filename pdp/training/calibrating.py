"""Calibration samples for the methods that prune at one stroke: the first of the training part in the seed's order."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pdp.config.schema import Config
from pdp.pruner.pruner import Pruner
from pdp.runs.checkpoint import save_weights
from pdp.runs.directory import RunDirectory
from pdp.spoken import config_words
from pdp.tasks.task import Batch, Task

_BATCH = 8  # samples that run through the model together, which decides memory alone


def prune_calibrated(
    config: Config, task: Task, model: nn.Module, pruner: Pruner, accelerator: Accelerator, directory: RunDirectory
) -> str:
    """Keeps the dense weights, to be measured, and prunes by calibration on every process; returns what was done."""
    if accelerator.is_main_process:
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
        save_weights(model, directory.before_pruning)
    wanted = config.method.calibration  # type: ignore[attr-defined]
    batches = samples_of(config, task, wanted, accelerator.device)
    with config_words():
        found = pruner.calibrate(batches, forward=lambda batch: task.outputs(model, batch))
    if accelerator.num_processes > 1:
        # The same numbers everywhere, whatever the devices make of them.
        for layer in pruner.layers:
            torch.distributed.broadcast(layer.weight.data, 0)
            if "keep" in layer.state:
                keep = layer.state["keep"].to(torch.uint8)
                torch.distributed.broadcast(keep, 0)
                layer.state["keep"].copy_(keep.bool())
    fewer = "" if found == wanted else f" (method.calibration={wanted}, there are no more)"
    return f"pruned at one stroke from {found} calibration samples of the training part{fewer}"


def samples_of(config: Config, task: Task, count: int, device: torch.device) -> list[Batch]:
    """At most so many training samples in batches of a few, as the model takes them, not augmented."""
    loader = task.train_loader(min(_BATCH, count, task.sizes()["train"]), config.seed, "none", 0)
    sampler: Any = loader.batch_sampler
    sampler.set_epoch(0, 0)
    batches: list[Batch] = []
    for batch in loader:
        batch = {key: value[:count].to(device) for key, value in batch.items()}
        batches.append(batch)
        count -= len(batch["index"])
        if count <= 0:
            break
    return batches
