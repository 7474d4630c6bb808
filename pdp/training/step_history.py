"""The history by steps, steps.jsonl: one line every so many optimizer steps, limited to about a megabyte."""

from __future__ import annotations

from pdp.runs.directory import RunDirectory

MOST_LINES = 8000


class StepHistory:
    """When a run of `total` steps writes a line: every `every` steps (0: never), less often in a long run."""

    def __init__(self, directory: RunDirectory, every: int, total: int):
        self.directory = directory
        self.every = max(every, -(-total // MOST_LINES)) if every else 0

    def due(self, step: int) -> bool:
        """Whether a line is to be written for this step."""
        return bool(self.every) and step % self.every == 0
