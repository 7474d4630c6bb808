"""The loss that training minimises for each micro-batch: the task's own, or one that includes a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pdp.runs.directory import RunDirectory
from pdp.tasks.task import Batch, Task


class Objective:
    """The task's own loss."""

    def __init__(self, task: Task, label_smoothing: float):
        self.task, self.label_smoothing = task, label_smoothing

    def prepare(self, directory: RunDirectory, say: Callable[[str], None]) -> None:
        """Work to do after the run's directory is locked and before training begins; `say` shows a line."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the micro-batch, a 0-dim float32 tensor."""
        return self.task.loss(model, batch, self.label_smoothing)

    def record(self) -> dict[str, Any]:
        """What the run's record says about the teacher; empty without one."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `Refusal` if `state` differs from the present `state_dict`."""
