"""What the files of this room need of a pruner, so that none of them has to import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from pdp.layers import Layer
from pdp.methods.method import Method, Moment
from pdp.patterns.pattern import Pattern
from pdp.pruner.adapters import Adapter
from pdp.pruner.counted import Counted
from pdp.pruner.guard import Guard
from pdp.quantize.frozen import Frozen
from pdp.quantize.quantizer import Quantizer
from pdp.schedule.shapes import Schedule


class Parts(Protocol):
    """A method on the layers of a model, and its progress."""

    model: nn.Module
    method: Method
    pattern: Pattern
    layers: list[Layer]
    guard: Guard  # only if the method prunes
    handles: list[RemovableHandle]  # of the hooks on the model
    quantizer: Quantizer | None
    adapters: list[Adapter]

    target: float | None
    allocation: str
    allocation_path: str | Path | None
    schedule: Schedule | None
    epochs: int
    upper_bound: float

    counted: Counted
    epoch: int | None
    steps: int
    start: int | None
    fraction: float
    finished: bool
    frozen: Frozen | None  # what finalize() leaves of quantization
    metrics: list[float]

    @property
    def hooked_layers(self) -> list[Layer]:
        """The layers whose weight is computed at each use."""

    @property
    def prunable_share(self) -> float:
        """The share of the model's weights that are prunable."""


def check_alive(pruner: Parts) -> None:
    """Raises `RuntimeError` once the model is hard."""
    if pruner.finished:
        raise RuntimeError("the model is hard: finalize() was called, and pruning cannot go on")


def moment_of(pruner: Parts, **values: Any) -> Moment:
    """The present moment of training, as a method is told it."""
    return Moment(pruner.epoch or 0, pruner.steps, pruner.fraction, **values)
