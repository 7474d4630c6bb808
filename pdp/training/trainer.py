"""The training loop, one for every task, method and pattern: it asks task and pruner and knows nothing of either."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from pdp.config.schema import Config
from pdp.distill.objective import Objective
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.pruner.alive import live_share
from pdp.pruner.distributions import histograms
from pdp.pruner.pruner import Pruner
from pdp.pruner.revived import Revived
from pdp.runs.checkpoint import load_newest, random_state, restore_random_state, save_checkpoint, save_weights
from pdp.runs.directory import RunDirectory
from pdp.tasks.task import Task
from pdp.tracking.tracker import Tracker
from pdp.training.display import Display, Look, stage
from pdp.training.evaluation import measure
from pdp.training.graphs import StepGraphs, usable
from pdp.training.optimizers import make_average, make_optimizer, rate_factor, set_rate
from pdp.training.signals import StopSignals

LOOK_SECONDS = 0.5  # between two looks at the loss, each of which waits for the device


class Trainer:
    """Trains `model` for the configured epochs; every decision about the future lies in `state_dict`."""

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
    ):
        recipe = config.recipe
        self.config, self.recipe, self.task, self.pruner = config, recipe, task, pruner
        self.accelerator, self.directory, self.display = accelerator, directory, display
        self.model = model  # the plain model; evaluation and checkpoints use it
        self.steps_per_epoch = steps_per_epoch
        self.tracker, self.revived = tracker or Tracker(), Revived()
        self.objective = objective or Objective(task, recipe.label_smoothing)
        optimizer = make_optimizer(model, recipe)
        pruner.attach(optimizer)
        loader = task.train_loader(
            recipe.batch_size // recipe.accumulation, config.seed, recipe.augmentation, config.data.workers
        )
        self.sampler: Any = loader.batch_sampler
        trained = torch.compile(model) if recipe.compile is True else model
        self.trained, self.optimizer, self.loader = accelerator.prepare(trained, optimizer, loader)
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
        self.epoch, self.batch, self.step = 0, 0, 0
        self.seconds = 0.0
        self.metric: float | None = None  # the last validation's
        self.best: dict[str, float | int] | None = None
        self.loss_sum, self.loss_count = 0.0, 0
        self.step_ms: deque[float] = deque(maxlen=2000)
        self.mask_ms: deque[float] = deque(maxlen=2000)
        self.histograms: dict[str, np.ndarray] = {}
        self._begun = self._shown = (0, time.perf_counter())  # step and time of this start, and of the last look
        self._speed = 0.0  # steps a second

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Trains from wherever the state is to the last epoch; raises `Stopped` and `SavedForRestart`."""
        total = self.recipe.epochs * self.steps_per_epoch
        with StopSignals() as signals, self.display:
            self.display.start(total, self.step)
            self._begun = self._shown = (self.step, time.perf_counter())
            for epoch in range(self.epoch, self.recipe.epochs):
                if self.batch == 0:
                    self._start_epoch(epoch)
                self._train_epoch(epoch, signals)
                self._end_epoch(epoch)
                if epoch + 1 < self.recipe.epochs and signals.seen(self.accelerator):
                    self._leave(signals)

    def _start_epoch(self, epoch: int) -> None:
        before = self.pruner.fraction
        started = time.perf_counter()
        self.pruner.start_epoch(epoch, metric=self.metric)
        self.mask_ms.append(1000 * (time.perf_counter() - started))
        self._note_pruning(before)
        self.loss_sum, self.loss_count = 0.0, 0

    def _note_pruning(self, before: float) -> None:
        """Keeps the weights as they were when pruning began, and histograms at the start and the middle of the ramp."""
        now = self.pruner.fraction
        if not self.accelerator.is_main_process or before == now:
            return
        if before == 0:
            self.directory.checkpoints.mkdir(parents=True, exist_ok=True)
            save_weights(self.model, self.directory.before_pruning)
            self.keep_histograms("start")
        if before < 0.5 <= now:
            self.keep_histograms("middle")

    def keep_histograms(self, moment: str) -> None:
        """Files the weights' and masks' histograms under `moment`."""
        self.histograms |= {f"{moment}/{key}": value for key, value in histograms(self.pruner).items()}

    def _train_epoch(self, epoch: int, signals: StopSignals) -> None:
        self.trained.train()
        self.sampler.set_epoch(epoch, self.batch)
        micro_batches = self.steps_per_epoch * self.recipe.accumulation
        looked = started = time.perf_counter()
        loss_sum = torch.tensor(self.loss_sum, device=self.accelerator.device)
        for batch in self.loader:
            if self.batch >= micro_batches:
                continue  # too few are left for one more optimizer step; leaving early would leave the loader open
            with self.accelerator.accumulate(self.trained):
                loss_sum += self._backward(batch)
                self.loss_count += 1
                self.batch += 1
                if not self.accelerator.sync_gradients:
                    continue
                self._optimizer_step()
            now = time.perf_counter()
            self.seconds += now - started
            self.step_ms.append(1000 * (now - started))
            started = now
            if now - looked > LOOK_SECONDS:
                looked = now
                self._look(loss_sum, epoch)
            if self.batch < micro_batches and signals.seen(self.accelerator, self.step):
                self._look(loss_sum, epoch)
                self.loss_sum = float(loss_sum)
                self._leave(signals)
        self._look(loss_sum, epoch)
        self.seconds += time.perf_counter() - started  # the steps that the device still had before it
        self.loss_sum = float(loss_sum)
        self.batch = 0
        self.epoch = epoch + 1

    def _backward(self, batch: Any) -> torch.Tensor:
        """The loss of a micro-batch, without its penalty; its gradients are in the parameters."""
        if self.graphs is not None:
            try:
                return self.graphs.backward(batch)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # an operation that waits for the device, say
                self.graphs = None
                self.optimizer.zero_grad()
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                self.display.say(f"recipe.compile=graphs: steps cannot be recorded, training goes on without: {reason}")
        loss = self.objective.loss(self.trained, batch)
        penalty = self.pruner.penalty()
        self.accelerator.backward(loss if penalty is None else loss + penalty)
        return loss.detach()

    def _optimizer_step(self) -> None:
        before = self.pruner.fraction
        set_rate(self.optimizer, rate_factor(self.recipe, self.step, self.steps_per_epoch))
        if self.accelerator.scaler:
            self.accelerator.unscale_gradients()
        self.pruner.after_backward()
        if self.recipe.clip is not None:
            clipped = [*self.model.parameters(), *self.pruner.method.clipped()]
            torch.nn.utils.clip_grad_norm_(clipped, self.recipe.clip)
        self.optimizer.step()
        started = time.perf_counter()
        self.pruner.step()
        self.mask_ms.append(1000 * (time.perf_counter() - started))
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)
        self._note_pruning(before)

    def _look(self, loss_sum: torch.Tensor, epoch: int) -> None:
        """Waits for the device, stops on a non-finite loss, moves the bar."""
        mean = float(loss_sum) / max(1, self.loss_count)
        if not np.isfinite(mean):
            raise Stopped(
                f"the loss is {mean} in epoch {epoch + 1} at step {self.step}: lower recipe.lr={self.recipe.lr}, "
                "give recipe.clip=1.0 or a longer recipe.lr_warmup"
            )
        self._show(mean, epoch)

    def _show(self, loss: float, epoch: int, ends: bool = False) -> None:
        total = self.recipe.epochs * self.steps_per_epoch
        now = time.perf_counter()
        step, when = self._shown
        speed = (self.step - step) / max(now - when, 1e-9)
        # A look soon after another says little of the speed.
        if now - when > LOOK_SECONDS and self.step > step:
            self._shown, self._speed = (self.step, now), speed
        begun_step, begun = self._begun
        left = (now - begun) / max(1, self.step - begun_step) * (total - self.step)
        self.display.step(
            Look(
                step=self.step,
                steps=total,
                epoch=epoch,
                epochs=self.recipe.epochs,
                loss=loss,
                rate=self.optimizer.param_groups[0]["lr"],
                sparsity=self.pruner.share,
                stage=stage(self.pruner.phase, self.pruner.fraction),
                samples_per_second=(self._speed or speed) * self.recipe.batch_size,
                samples="images" if self.config.model.task == "images" else "texts",
                seconds_left=left,
                metric_name=self.task.metric_name,
                metric=self.metric,
                pruned=self.pruner.method.prunes,
            ),
            ends,
        )

    # ---------------------------------------------------------------- between epochs

    def _end_epoch(self, epoch: int) -> None:
        every, last = self.recipe.soft_every, epoch + 1 == self.recipe.epochs
        soft = None
        if self.config.method.name != "dense" and (last or (every and (epoch + 1) % every == 0)):
            soft = self.measure(self.validation)
        with self.pruner.hard():
            metrics = self.measure(self.validation)
        self.metric = metrics[self.task.metric_name]
        self._note_best(epoch)
        line = {
            "epoch": epoch,
            "step": self.step,
            "loss": self.loss_sum / max(1, self.loss_count),
            "lr": self.optimizer.param_groups[0]["lr"],
            "metric": self.metric,
            "metrics": metrics,
            "metric_soft": None if soft is None else soft[self.task.metric_name],
            "sparsity": self.pruner.share,
            "phase": self.pruner.phase,
            "layer_shares": {layer.name: layer.pruned / layer.units for layer in self.pruner.layers},
            "step_ms": median(self.step_ms) if self.step_ms else None,
            "mask_ms": median(self.mask_ms) if self.mask_ms else None,
            "seconds": self.seconds,
        }
        if self.accelerator.is_main_process:
            line |= self.revived.look(self.pruner) | live_share(self.pruner)
            self.directory.write_history(line)
            self.tracker.log(line)
        self.save()
        self._show(line["loss"], epoch, ends=last)

    def measure(self, loader: Any) -> dict[str, float]:
        """Metrics of the model, or of its running average where there is one."""
        return measure(self.task, self.average.module if self.average else self.model, loader, self.accelerator)

    def _note_best(self, epoch: int) -> None:
        """The best epoch counts only at the target sparsity."""
        if not self.pruner.at_target and epoch + 1 < self.recipe.epochs:
            return
        sign = 1 if self.task.higher_is_better else -1
        assert self.metric is not None
        if self.best is None or sign * self.metric > sign * self.best["metric"]:
            self.best = {"metric": self.metric, "epoch": epoch}
            if self.accelerator.is_main_process:
                self.directory.checkpoints.mkdir(parents=True, exist_ok=True)
                with self.pruner.baked(self.average.module if self.average else self.model) as hard_model:
                    save_weights(hard_model, self.directory.best)

    # ---------------------------------------------------------------- the state

    def _leave(self, signals: StopSignals) -> None:
        if self.batch:
            self.save()
        raise SavedForRestart(f"{signals.name}: saved at step {self.step}; the same command goes on from there")

    def save(self) -> None:
        """Writes a checkpoint; the main process alone writes."""
        states = gather_object([random_state()]) if self.accelerator.num_processes > 1 else [random_state()]
        if self.accelerator.is_main_process:
            save_checkpoint(self.directory.checkpoints, self.state_dict(states), self.step)
        self.accelerator.wait_for_everyone()

    def state_dict(self, random_states: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything that decides how the run goes on."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "metric": self.metric,
            "best": self.best,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "step_ms": list(self.step_ms),
            "mask_ms": list(self.mask_ms),
            "histograms": {key: torch.from_numpy(value) for key, value in self.histograms.items()},
            "random": random_states,
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "pruner": self.pruner.state_dict(),
            "revived": self.revived.state_dict(),
            "objective": self.objective.state_dict(),
            "tracker": self.tracker.state_dict(),
        }

    def resume(self) -> bool:
        """Goes on from the newest whole checkpoint; False where there is none."""
        state = load_newest(self.directory.checkpoints, self.display.say)
        if state is None:
            return False
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise Refusal(
                f"{self.directory.checkpoints} is of another model ({reason}): rerun=true starts over"
            ) from None
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.pruner.load_state_dict(state["pruner"])
        self.revived.load_state_dict(state["revived"])
        self.tracker.load_state_dict(state["tracker"])
        self.objective.load_state_dict(state.get("objective", {}))
        for key in ("epoch", "batch", "step", "seconds", "metric", "best", "loss_sum", "loss_count"):
            setattr(self, key, state[key])
        self.step_ms.extend(state["step_ms"])
        self.mask_ms.extend(state["mask_ms"])
        self.histograms = {key: value.numpy() for key, value in state["histograms"].items()}
        states = state["random"]
        restore_random_state(states[self.accelerator.process_index % len(states)])
        if self.accelerator.is_main_process:
            self.directory.cut_history(self.epoch)
        return True
