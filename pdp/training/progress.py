"""The progress of a run for the display: mean loss, speed and remaining time.

The trainer imports this module, so this module does not import the trainer and takes it as `Any`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pdp.errors import Stopped
from pdp.training.display import Display, Look, stage

LOOK_SECONDS = 0.5  # between two reads of the loss, each of which waits for the device


class Progress:
    """Measures steps and seconds since this start of the run and since the last look."""

    def __init__(self, display: Display):
        self.display = display
        self._begun = self._shown = (0, time.perf_counter())  # (step, time) of this start and of the last look
        self._speed = 0.0  # steps per second

    def start(self, step: int, total: int) -> None:
        """Begins at step `step` of `total` optimizer steps."""
        self.display.start(total, step)
        self._begun = self._shown = (step, time.perf_counter())

    def look(self, trainer: Any, epoch: int) -> None:
        """Waits for the device and moves the bar; raises `Stopped` if the mean loss is not finite."""
        mean = trainer.losses.mean
        if not np.isfinite(mean):
            raise Stopped(
                f"the loss is {mean} in epoch {epoch + 1} at step {trainer.step}: lower "
                f"recipe.lr={trainer.recipe.lr}, give recipe.clip=1.0, a longer recipe.lr_warmup, or leave such steps "
                "out: recipe.on_nonfinite=skip"
            )
        self.show(trainer, mean, epoch)

    def show(self, trainer: Any, loss: float, epoch: int, ends: bool = False) -> None:
        """Moves the bar, or prints a line where one is due or the run `ends`."""
        now = time.perf_counter()
        step, when = self._shown
        speed = (trainer.step - step) / max(now - when, 1e-9)
        # Over a short interval the speed cannot be measured well.
        if now - when > LOOK_SECONDS and trainer.step > step:
            self._shown, self._speed = (trainer.step, now), speed
        begun_step, begun = self._begun
        left = (now - begun) / max(1, trainer.step - begun_step) * (trainer.total - trainer.step)
        pruner = trainer.pruner
        self.display.step(
            Look(
                step=trainer.step,
                steps=trainer.total,
                epoch=epoch,
                epochs=trainer.recipe.epochs,
                loss=loss,
                rate=trainer.optimizer.param_groups[0]["lr"],
                share=pruner.pattern.reached(pruner.layers),
                stage=stage(pruner.phase, pruner.fraction),
                samples_per_second=(self._speed or speed) * trainer.recipe.batch_size,
                samples="images" if trainer.config.model.task == "images" else "texts",
                seconds_left=left,
                metric_name=trainer.task.metric_name,
                metric=trainer.metric,
                pruned=pruner.method.prunes,
                target_unit=pruner.pattern.target_unit,
            ),
            ends,
        )
