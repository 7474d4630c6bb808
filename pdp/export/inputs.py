"""What a portable model takes: tensors by place, of any number of samples and, of text, of any length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Logits(nn.Module):
    """A transformer that takes its inputs by place and gives, of a record of several things, the logits alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, tokens) each to (N, classes), or (N, tokens, vocabulary)."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def dynamic_shapes(model: nn.Module, inputs: int) -> Any:
    """What may differ from the inputs that a model is exported with: the number of samples, and of tokens."""
    dimensions = {0: torch.export.Dim("batch")}
    if not isinstance(model, Logits):
        return (dimensions,) * inputs
    dimensions[1] = torch.export.Dim("tokens", max=_positions(model.model))
    # A model of *inputs takes them as one argument.
    return (tuple(dimensions for _ in range(inputs)),)


def _positions(model: Any) -> int | None:
    """The longest text that the model has positions for; None where nothing bounds it."""
    value = getattr(model.config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None
