"""A model set up to train as train.py does, for measuring: one fixed batch, at one moment of the schedule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.config.compose import compose
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.methods.method import Moment
from pdp.tasks import build_task
from pdp.tasks.made_batch import made_batch
from pdp.training.assembly import make_accelerator, make_model, make_pruner, steps_in_epoch
from pdp.training.optimizers import make_optimizer


class Contender:
    """Model, pruner, optimizer and one batch of a configuration, composed already or given as train.py's arguments.

    The batch is the first one of the data, or with `made` random numbers in its shape, so that no data is opened. `at`
    is the moment as a fraction of the run; 1 is its end. Raises `Refusal` for arguments that train.py refuses, and if
    the method prunes nothing at that moment.
    """

    def __init__(self, words: Sequence[str] | Config, made: bool = False, at: float = 1.0):
        config = words if isinstance(words, Config) else compose(words)
        self.recipe, self.task = config.recipe, build_task(config)
        if not made:
            self.task.open_data()
        self.accelerator = make_accelerator(config)
        self.device = self.accelerator.device
        self.model = make_model(config, self.task).to(self.device).train()
        self.pruner = make_pruner(config, self.task, self.model, steps_in_epoch(config, self.task))
        optimizer = make_optimizer(self.model, self.recipe)
        self.pruner.attach(optimizer)
        trained = torch.compile(self.model) if self.recipe.compile is True else self.model
        self.trained, self.optimizer = self.accelerator.prepare(trained, optimizer)
        if made:
            batch = made_batch(config, self.task)
        else:
            loader = self.task.train_loader(self.recipe.batch_size, config.seed, self.recipe.augmentation, 0)
            batch = next(iter(self.task.ahead(loader, self.device)))
        self.batch: dict[str, Tensor] = {name: values.to(self.device) for name, values in batch.items()}
        self.steps = 0
        self._go_to(at)

    def _go_to(self, at: float) -> None:
        """Sets the share and budget that hold at that moment of the run."""
        self.pruner.start_epoch(0)
        if self.pruner.schedule is None:
            return
        if self.pruner.schedule.unit == "step":
            self.pruner.steps = int(at * (self.pruner.schedule.moments - 1))
        self.pruner.start_epoch(int(at * (self.recipe.epochs - 1)))
        if not self.pruner.fraction:
            raise Refusal(f"schedule: nothing is pruned at {at:.0%} of the run, so there is no step to measure")

    def step(self) -> None:
        """One optimizer step, as the trainer does it."""
        loss = self.task.loss(self.trained, self.batch, self.recipe.label_smoothing)
        penalty = self.pruner.penalty()
        self.accelerator.backward(loss if penalty is None else loss + penalty)
        if self.accelerator.scaler:
            self.accelerator.unscale_gradients()
        self.pruner.after_backward()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.pruner.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def seconds(self, steps: int = 1) -> float:
        """Wall time of `steps` steps in seconds, including the device's work."""
        return seconds(self.step, self.device, steps)

    @property
    def prunable(self) -> int:
        """The number of prunable weights."""
        return sum(weight.numel() for weight in self.pruner.prunable_weights.values())


def seconds(work: Any, device: torch.device, times: int = 1) -> float:
    """Wall time of `times` calls in seconds, including the device's work."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def own_seconds(contender: Contender, repeats: int = 7) -> dict[str, list[float]]:
    """Seconds that the method's own operations take in one step, each operation alone, measured `repeats` times.

    `cut` finds the cuts of all layers, `mask` computes all effective weights, and `backward` takes their gradients back
    to the stored weights. `copy`, for comparison, copies all stored weights once.
    """
    pruner, device = contender.pruner, contender.device
    members = [(layer, member) for layer in pruner.layers if layer.active for member in layer.members]
    stored = [member.tensor for _, member in members]
    found: dict[str, list[float]] = {"copy": [], "cut": [], "mask": [], "backward": []}
    effective: list[Tensor] = []
    gradients: list[Tensor] = []

    def copy() -> None:
        for weight in stored:
            weight.detach().clone()

    @torch.no_grad()
    def cut() -> None:
        pruner.method.update(pruner.layers, Moment(pruner.epoch or 0, pruner.steps, pruner.fraction))

    def mask() -> None:
        pruner.method.begin_forward(pruner.layers)
        effective[:] = [pruner.method.effective_weight(layer, member.tensor, member) for layer, member in members]
        pruner.method.end_forward()

    def backward() -> None:
        chosen = [pair for pair in zip(effective, gradients, strict=True) if pair[0].requires_grad]
        torch.autograd.grad([one for one, _ in chosen], stored, [one for _, one in chosen], allow_unused=True)

    for _ in range(repeats):
        for name, work in (("copy", copy), ("cut", cut), ("mask", mask)):
            found[name].append(seconds(work, device))
        gradients = gradients or [torch.randn_like(one) for one in effective]
        found["backward"].append(seconds(backward, device))
        effective.clear()
    return found
