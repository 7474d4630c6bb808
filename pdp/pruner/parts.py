"""What a pruner's state and its report need of the pruner, so that neither has to import it."""

from __future__ import annotations

from typing import Any, Protocol

from pdp.layers import Layer
from pdp.methods.method import Method
from pdp.patterns.pattern import Pattern
from pdp.quantize.quantizer import Quantizer


class Parts(Protocol):
    """A method on the layers of a model, and its progress."""

    method: Method
    pattern: Pattern
    layers: list[Layer]
    epoch: int | None
    steps: int
    start: int | None
    fraction: float
    finished: bool
    metrics: list[float]
    adapters: list[Any]
    quantizer: Quantizer | None

    @property
    def prunable_share(self) -> float:
        """The share of the model's weights that are prunable."""
