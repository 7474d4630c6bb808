"""Makes the tracker of a run: none, Weights & Biases or TensorBoard; each is imported only when chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pdp.config.schema import Config, TensorboardConfig, WandbConfig
from pdp.tracking.tracker import Tracker


def make_tracker(
    config: Config, directory: Path, run_id: str, say: Callable[[str], None], is_main: bool = True
) -> Tracker:
    """The tracker that `config.tracker` asks for; on processes other than the main one it sends nothing.

    `run_id` is that of the record. Raises `Refusal` for tracker.mode=online if no key is configured.
    """
    if is_main and isinstance(config.tracker, WandbConfig):
        from pdp.tracking.wandb_tracker import WandbTracker

        return WandbTracker(config, directory, run_id, say)
    if is_main and isinstance(config.tracker, TensorboardConfig):
        from pdp.tracking.tensorboard_tracker import TensorboardTracker

        return TensorboardTracker(directory, say)
    return Tracker()
