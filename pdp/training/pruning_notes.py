"""What a run keeps of the model around its pruning: the weights from before, and histograms of weights and masks.

The trainer imports this module, so this module does not import the trainer and takes it as `Any`.
"""

from __future__ import annotations

from typing import Any

from pdp.pruner.distributions import histograms
from pdp.training.averaged import averaged
from pdp.training.sharding import save_model_weights


def note_pruning(trainer: Any, before: float) -> None:
    """Keeps the weights from when pruning began, and histograms at the start and the middle of the ramp.

    `before` is the pruner's fraction of the target before it last changed.
    """
    now = trainer.pruner.fraction
    if not trainer.takes_part or before == now:
        return
    if before == 0:
        keep_weights(trainer)
    if before < 0.5 <= now:
        keep_histograms(trainer, "middle")


def keep_weights(trainer: Any) -> None:
    """Keeps the dense weights and the histograms of the start, just before the first unit is pruned."""
    main = trainer.accelerator.is_main_process
    if main:
        trainer.directory.checkpoints.mkdir(parents=True, exist_ok=True)
    with averaged(trainer):
        save_model_weights(trainer.model, trainer.directory.before_pruning, main)
    keep_histograms(trainer, "start")


def keep_histograms(trainer: Any, moment: str) -> None:
    """Keeps the histograms of weights and masks under the name `moment`."""
    trainer.histograms |= {f"{moment}/{key}": value for key, value in histograms(trainer.pruner).items()}
