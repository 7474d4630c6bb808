"""Means of the training loss for the histories: since the last evaluation, and since the last line of steps.jsonl."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Losses:
    """Sums on the device, copied to the host only on request; `skipped` counts steps skipped for a non-finite loss."""

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(2, device=device)  # since the last evaluation, since the last line by steps
        self._counts = [0, 0]
        self.skipped = 0
        self.skipped_in_a_row = 0

    def add(self, loss: Tensor) -> None:
        """Adds the loss of a micro-batch, a 0-dim tensor."""
        self._sums += loss
        self._counts = [count + 1 for count in self._counts]

    @property
    def mean(self) -> float:
        """The mean since the last evaluation; waits for the device."""
        return float(self._sums[0]) / max(1, self._counts[0])

    @property
    def recent(self) -> float:
        """The mean since the last line of steps.jsonl; waits for the device."""
        return float(self._sums[1]) / max(1, self._counts[1])

    def forget(self, recent: bool = False) -> None:
        """Restarts the mean since the last evaluation, or with `recent` the one since the last line by steps."""
        self._sums[int(recent)] = 0
        self._counts[int(recent)] = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "loss_sum": float(self._sums[0]),
            "loss_count": self._counts[0],
            "recent": [float(self._sums[1]), self._counts[1]],
            "skipped": [self.skipped, self.skipped_in_a_row],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`, or as much of it as checkpoints of earlier versions have."""
        recent, count = state.get("recent", (0.0, 0))
        self._sums = torch.tensor([state["loss_sum"], recent], device=self._sums.device)
        self._counts = [state["loss_count"], count]
        self.skipped, self.skipped_in_a_row = state.get("skipped", (0, 0))
