"""The training loop for every task, method and pattern; it calls task and pruner and knows no details of either."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any, NoReturn

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from pdp.config.schema import Config
from pdp.distill.objective import Objective
from pdp.errors import SavedForRestart
from pdp.pruner.pruner import Pruner
from pdp.pruner.revived import Revived
from pdp.runs.checkpoint import random_state
from pdp.runs.directory import RunDirectory
from pdp.schedule.time import Time
from pdp.spoken import config_words
from pdp.tasks.task import Task
from pdp.tracking.tracker import Tracker
from pdp.training.assembly import compiled
from pdp.training.display import Display
from pdp.training.evaluation import AskedToStop, measure
from pdp.training.graphs import StepGraphs, usable
from pdp.training.losses import Losses
from pdp.training.measuring import measure_and_file
from pdp.training.nonfinite import SkipGuard
from pdp.training.optimizer_step import backward, optimizer_step
from pdp.training.optimizers import make_average, make_optimizer
from pdp.training.progress import LOOK_SECONDS, Progress
from pdp.training.pruning_notes import keep_weights, note_pruning
from pdp.training.sharding import check_layers, follow, shard, shards
from pdp.training.signals import StopSignals
from pdp.training.step_history import StepHistory
from pdp.training.together import share_buffers
from pdp.training.trainer_state import load_state, newest_state, state_of, with_change
from pdp.training.writer import CheckpointWriter


class Trainer:
    """Trains `model` for the configured epochs; everything that decides how it continues is in `state_dict`."""

    def __init__(
        self,
        config: Config,
        task: Task,
        model: nn.Module,
        pruner: Pruner,
        accelerator: Accelerator,
        directory: RunDirectory,
        display: Display,
        steps_per_epoch: int,
        tracker: Tracker | None = None,
        objective: Objective | None = None,
        signals: StopSignals | None = None,
    ):
        recipe = config.recipe
        self.config, self.recipe, self.task, self.pruner = config, recipe, task, pruner
        self.accelerator, self.directory, self.display = accelerator, directory, display
        self.model = model  # the unwrapped model, for evaluation and checkpoints
        self.steps_per_epoch, self.total = steps_per_epoch, recipe.epochs * steps_per_epoch
        self.evaluate_every: int | None = None  # in steps; None: at the ends of epochs
        if recipe.evaluate_every is not None:
            every = Time.parse(recipe.evaluate_every, "recipe.evaluate_every")
            self.evaluate_every = max(1, every.steps(recipe.epochs, steps_per_epoch))
        self.tracker, self.revived = tracker or Tracker(), Revived()
        self.objective = objective or Objective(task, recipe.label_smoothing)
        self.signals = signals or StopSignals()
        self.sharded = shards(config)
        # Whether this process has a part in what the main one leaves: the whole of a sharded weight is in no process.
        self.takes_part = accelerator.is_main_process or self.sharded
        under = {"sharding": "fsdp" if self.sharded else "none", "processes": accelerator.num_processes}
        self.ran_under = with_change([], under, 0)
        if self.sharded:
            check_layers(pruner)
            shard(model, accelerator)
            follow(pruner, accelerator.device)
        self.writer = CheckpointWriter(directory.checkpoints, recipe.checkpoint_minutes, directory.check_held)
        if recipe.adapter != "none":
            targets, heads = recipe.adapter_targets, task.heads(model)
            with config_words():
                pruner.add_adapters(recipe.adapter_rank, recipe.adapter_alpha, targets, heads)
        optimizer = make_optimizer(model, recipe, pruner.adapter_parameters)
        pruner.attach(optimizer)
        loader = task.train_loader(
            recipe.batch_size // recipe.accumulation, config.seed, recipe.augmentation, config.data.workers
        )
        self.sampler: Any = loader.batch_sampler
        trained = compiled(model) if recipe.compile is True else model
        if self.sharded:  # precision alone is left to do
            self.trained = accelerator.prepare_model(trained, device_placement=False, evaluation_mode=True)
            self.optimizer, self.loader = accelerator.prepare(optimizer, loader)
        else:
            self.trained, self.optimizer, self.loader = accelerator.prepare(trained, optimizer, loader)
        self.loader = task.ahead(self.loader, accelerator.device)
        self.validation = accelerator.prepare(
            task.evaluation_loader(
                "validation", task.evaluation_batch(recipe.batch_size, accelerator.device.type), config.data.workers
            )
        )
        plain = type(self.objective) is Objective
        self.graphs = (
            StepGraphs(self.trained, self.optimizer, pruner, self.objective.loss)
            if usable(config, accelerator, pruner, plain)
            else None
        )
        self.average = make_average(model, recipe)
        self.guard = SkipGuard(model, accelerator) if recipe.on_nonfinite == "skip" else None
        self.epoch, self.batch, self.step = 0, 0, 0
        self.measured = 0  # the step of the last evaluation
        self.saved: tuple[int, int] | None = None  # step and measured of the last checkpoint
        self.seconds = 0.0
        self.metric: float | None = None  # of the last validation
        self.best: dict[str, float | int] | None = None
        self.said: list[str] = []  # notes for the record on what was done before the first step
        self.losses = Losses(accelerator.device)
        self.step_history = StepHistory(directory, recipe.history_steps, self.total)
        self.step_ms: deque[float] = deque(maxlen=2000)
        self.mask_ms: deque[float] = deque(maxlen=2000)
        self.histograms: dict[str, np.ndarray] = {}
        self.progress = Progress(display)

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Trains from the present state to the last epoch; raises `Stopped` and `SavedForRestart`."""
        try:
            with self.signals.noting(), self.display:
                self.progress.start(self.step, self.total)
                if self._to_measure:  # the run was stopped before or during an evaluation
                    self._measure()
                for epoch in range(self.epoch, self.recipe.epochs):
                    if self.batch == 0:
                        self._start_epoch(epoch)
                    self._train_epoch(epoch)
                    if self._to_measure:
                        self._measure()
                    self.save()
                    if epoch + 1 < self.recipe.epochs and self.signals.seen(self.accelerator):
                        self._leave()
                if not self.total:
                    self._measure_untrained()
            self.writer.wait()
        finally:
            self.writer.end()

    def _start_epoch(self, epoch: int) -> None:
        before = self.pruner.fraction
        started = time.perf_counter()
        # If evaluations do not coincide with epochs, the pruner is told each metric when it is measured.
        self.pruner.start_epoch(epoch, metric=self.metric if self.evaluate_every is None else None)
        self.mask_ms.append(1000 * (time.perf_counter() - started))
        note_pruning(self, before)

    def _train_epoch(self, epoch: int) -> None:
        self.trained.train()
        self.sampler.set_epoch(epoch, self.batch)
        micro_batches = self.steps_per_epoch * self.recipe.accumulation
        looked = started = time.perf_counter()
        for batch in self.loader:
            if self.batch >= micro_batches:
                continue  # too few for another optimizer step; leaving early would leave the loader open
            with self.accelerator.accumulate(self.trained):
                if self.guard and self.batch % self.recipe.accumulation == 0:
                    self.guard.begin()
                (self.guard or self.losses).add(backward(self, batch))
                self.batch += 1
                if not self.accelerator.sync_gradients:
                    continue
                optimizer_step(self)
            now = time.perf_counter()
            self.seconds += now - started
            self.step_ms.append(1000 * (now - started))
            started = now
            if self.accelerator.is_main_process and self.step_history.due(self.step):
                self._note_steps()
            if now - looked > LOOK_SECONDS:
                looked = now
                self._look(epoch)
            if self.batch < micro_batches:
                if self._to_measure:
                    self._look(epoch)
                    self._measure()
                    self.trained.train()
                    started = time.perf_counter()
                self._between_steps(epoch)
        self._look(epoch)
        self.seconds += time.perf_counter() - started  # includes steps that the device still had to finish
        self.batch = 0
        self.epoch = epoch + 1

    def _between_steps(self, epoch: int) -> None:
        """Stops the run if a signal came; begins a checkpoint if one is due by the clock."""
        self.writer.check()
        self.signals.wanted = self.writer.due
        if self.signals.seen(self.accelerator, self.step):
            self._look(epoch)
            self._leave()
        if self.signals.save_now:
            self._look(epoch)  # no checkpoint of non-finite weights
            self.save()

    def _note_steps(self) -> None:
        """Writes a line of the history by steps; waits for the device."""
        recent = list(self.step_ms)[-self.step_history.every :]
        line = {
            "step": self.step,
            "loss": self.losses.recent,
            "lr": self.optimizer.param_groups[0]["lr"],
            "sparsity": self.pruner.share,
            "step_ms": median(recent),
            "skipped_steps": self.losses.skipped,
        }
        self.losses.forget(recent=True)
        self.directory.write_step(line)

    def _look(self, epoch: int) -> None:
        self.progress.look(self, epoch)

    # ---------------------------------------------------------------- measuring

    @property
    def _to_measure(self) -> bool:
        """Whether the model is to be evaluated in its present state and has not been yet."""
        every = self.evaluate_every or self.steps_per_epoch
        return self.measured < self.step and (self.step % every == 0 or self.step == self.total)

    def _measure(self) -> None:
        try:
            line = measure_and_file(self, lambda: self.signals.seen(self.accelerator, self.step))
        except AskedToStop:
            self._leave()
        self.progress.show(self, line["loss"], line["epoch"], ends=self.step == self.total)

    def _measure_untrained(self) -> None:
        """Writes the only line of the history of a run without training: the hard model on the validation part."""
        if self.pruner.method.prunes and not self.pruner.fraction and self.takes_part:
            keep_weights(self)
        self.pruner.at_once()
        self._measure()

    def measure(self, loader: Any, stop: Callable[[], bool] | None = None) -> dict[str, float]:
        """Metrics of the model as it is."""
        share_buffers(self.accelerator, self.model)
        return measure(self.task, self.model, loader, self.accelerator, stop)

    # ---------------------------------------------------------------- the state

    def _leave(self) -> NoReturn:
        self.save()
        self.writer.wait()
        raise SavedForRestart(f"{self.signals.name}: saved at step {self.step}; the same command goes on from there")

    def save(self) -> None:
        """Begins a checkpoint of the present state, unless there is one; only the main process writes."""
        if self.saved == (self.step, self.measured):
            return
        states = gather_object([random_state()]) if self.accelerator.num_processes > 1 else [random_state()]
        if self.takes_part:
            state = self.state_dict(states)
            if self.accelerator.is_main_process:
                self.writer.save(state, self.step)
        self.saved = (self.step, self.measured)

    def state_dict(self, random_states: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything that decides how the run continues."""
        return state_of(self, random_states)

    def resume(self) -> bool:
        """Restores the newest complete checkpoint; False if there is none."""
        state = newest_state(self.directory.checkpoints, self.accelerator, self.display.say)
        if state is None:
            return False
        load_state(self, state)
        if self.accelerator.is_main_process:
            self.directory.cut_history(self.measured, self.step)
        return True
