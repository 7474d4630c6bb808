"""Writes a run's curves as TensorBoard event files."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pdp.runs.record import Record
from pdp.tracking.tracker import Sender


class TensorboardTracker(Sender):
    """Event files in the run's directory, by optimizer step; a resumed run's events replace those of repeated steps."""

    label = "TensorBoard"

    def _start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)

    def _log(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()

    def _finish(self, record: Record | None) -> None:
        if record:
            text = json.dumps(dataclasses.asdict(record), indent=1)
            self._writer.add_text("record", "\n".join(f"    {line}" for line in text.splitlines()), record.steps)
        self._writer.close()
