"""Random numbers in the shape of a training batch, to measure steps where no data is available."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pdp.config.schema import Config
from pdp.tasks.task import Task


def made_batch(config: Config, task: Task, seed: int = 0) -> dict[str, Tensor]:
    """`recipe.batch_size` samples as the task's loss takes them, with texts and windows at full length; on the CPU.

    Images are float32 (N, 3, H, W) with mean 0 and standard deviation 1; tokens and classes are int64, uniformly
    distributed.
    """
    known: Any = task
    data: Any = config.data
    generator = torch.Generator().manual_seed(seed)
    size, shape = config.recipe.batch_size, tuple(task.example_input().shape[1:])

    def below(limit: int, *dims: int) -> Tensor:
        return torch.randint(limit, (size, *dims), generator=generator)

    if config.model.task == "images":
        return {"image": torch.randn(size, *shape, generator=generator), "label": below(known.classes)}
    tokens = below(len(known.tokenizer) if known.tokenizer is not None else data.vocabulary, *shape)
    if config.model.task == "language_modelling":
        return {"input_ids": tokens}
    labels = below(len(known.labels)) if known.labels else torch.rand(size, generator=generator)
    return {
        "input_ids": tokens,
        "token_type_ids": torch.zeros_like(tokens),
        "attention_mask": torch.ones_like(tokens),
        "label": labels,
    }
