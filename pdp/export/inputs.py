"""The inputs of an exported model: positional tensors with any number of samples and, for text, of any length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Logits(nn.Module):
    """Wraps a transformer so that it takes positional inputs and returns only the logits of its output record."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (N, tokens) each; returns (N, classes) or (N, tokens, vocabulary)."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def dynamic_shapes(model: nn.Module, inputs: int) -> Any:
    """The dimensions that may differ from those of the example inputs: the number of samples, and of tokens."""
    dimensions = {0: torch.export.Dim("batch")}
    if not isinstance(model, Logits):
        return (dimensions,) * inputs
    dimensions[1] = torch.export.Dim("tokens", max=_positions(model.model))
    # A model whose forward takes *inputs has them as a single argument.
    return (tuple(dimensions for _ in range(inputs)),)


def _positions(model: Any) -> int | None:
    """The longest text that the model has positions for; None if there is no limit."""
    value = getattr(model.config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None
