"""One optimizer step: its micro-batches' gradients, whether they are finite, the update, and the pruner's new masks.

The trainer imports this module, so this module does not import the trainer and takes it as `Any`.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from pdp.training.nonfinite import check_in_a_row
from pdp.training.optimizers import rate_factor, set_rate
from pdp.training.pruning_notes import note_pruning


def backward(trainer: Any, batch: Any) -> torch.Tensor:
    """Returns the loss of a micro-batch without penalty; leaves its gradients in the parameters."""
    if trainer.graphs is not None:
        try:
            return trainer.graphs.backward(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # for example an operation that waits for the device
            trainer.graphs = None
            trainer.optimizer.zero_grad()
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            trainer.display.say(f"recipe.compile=graphs: steps cannot be recorded, training goes on without: {reason}")
    loss = trainer.objective.loss(trainer.trained, batch)
    penalty = trainer.pruner.penalty()
    trainer.accelerator.backward(loss if penalty is None else loss + penalty)
    return loss.detach()


def optimizer_step(trainer: Any) -> None:
    """Takes the step with the gradients that are there, unless they are not finite."""
    before = trainer.pruner.fraction
    set_rate(trainer.optimizer, rate_factor(trainer.recipe, trainer.step, trainer.steps_per_epoch))
    if trainer.accelerator.scaler:
        trainer.accelerator.unscale_gradients()
    taken = _is_finite(trainer)
    if taken:
        trainer.pruner.after_backward()
        if trainer.recipe.clip is not None:
            pruner = trainer.pruner
            clipped = [*trainer.model.parameters(), *pruner.method.clipped(), *pruner.adapter_parameters]
            torch.nn.utils.clip_grad_norm_(clipped, trainer.recipe.clip)
    if taken or trainer.accelerator.scaler:  # a scaler skips the step itself, and lowers its scale
        trainer.optimizer.step()
    started = time.perf_counter()
    trainer.pruner.step()
    trainer.mask_ms.append(1000 * (time.perf_counter() - started))
    trainer.optimizer.zero_grad()
    trainer.step += 1
    if trainer.average is not None and taken:
        trainer.average.update(trainer.model, step=trainer.step)
    note_pruning(trainer, before)


def _is_finite(trainer: Any) -> bool:
    """Whether the step is to be taken; with recipe.on_nonfinite=stop the trainer checks the loss at its next look."""
    if trainer.guard is None:
        return True
    if trainer.guard.is_finite(trainer.optimizer):
        for loss in trainer.guard.losses:
            trainer.losses.add(loss)
        trainer.losses.skipped_in_a_row = 0
        return True
    trainer.losses.skipped += 1
    trainer.losses.skipped_in_a_row += 1
    check_in_a_row(trainer.losses.skipped_in_a_row, trainer.step)
    return False
