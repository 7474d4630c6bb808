"""Calibration samples for methods that prune in a single step: the first training samples in the seed's order."""

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

_BATCH = 8  # samples processed together, which affects only memory


def prune_calibrated(
    config: Config, task: Task, model: nn.Module, pruner: Pruner, accelerator: Accelerator, directory: RunDirectory
) -> str:
    """Stores the dense weights for evaluation, and prunes by calibration on every process; returns what was done."""
    if accelerator.is_main_process:
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
        save_weights(model, directory.before_pruning)
    wanted = config.method.calibration  # type: ignore[attr-defined]
    batches = samples_of(config, task, wanted, accelerator.device)
    with config_words():
        found = pruner.calibrate(batches, forward=lambda batch: task.outputs(model, batch))
    if accelerator.num_processes > 1:
        # Makes the numbers equal on all processes, as devices may compute slightly different ones.
        for layer in pruner.layers:
            torch.distributed.broadcast(layer.weight.data, 0)
            if "keep" in layer.state:
                keep = layer.state["keep"].to(torch.uint8)
                torch.distributed.broadcast(keep, 0)
                layer.state["keep"].copy_(keep.bool())
    fewer = "" if found == wanted else f" (method.calibration={wanted}, there are no more)"
    return f"pruned at one stroke from {found} calibration samples of the training part{fewer}"


def samples_of(config: Config, task: Task, count: int, device: torch.device) -> list[Batch]:
    """At most `count` training samples in small batches, as the model takes them, without augmentation."""
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
