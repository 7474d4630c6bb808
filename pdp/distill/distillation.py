"""Distillation: a teacher's logits, and optionally its hidden states and attentions, added to the task's loss.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from pdp.config.distill import own_weight, weight_source
from pdp.config.schema import Config, TeacherConfig
from pdp.distill.objective import Objective
from pdp.distill.teacher import Teacher, load_teacher
from pdp.distill.teacher_cache import LogitsCache
from pdp.errors import Refusal
from pdp.runs.checkpoint import random_state, restore_random_state
from pdp.runs.directory import RunDirectory
from pdp.tasks.task import Batch, Outputs, Task


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the rows of (N, classes) logits; 0-dim.

    A single logit, as in a regression, has no softmax; then this is the mean squared difference, without T.
    """
    if student.shape[-1] == 1:
        return functional.mse_loss(student, teacher)
    ours = functional.log_softmax(student / temperature, dim=-1)
    theirs = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def matched_depths(student: int, teacher: int) -> list[int]:
    """The teacher block that each student block is matched with: evenly spread, the last one with the last one."""
    return [-(-(block + 1) * teacher // student) - 1 for block in range(student)]


def matched_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """The mean squared difference of tensors at matched depths, averaged over the student's blocks; 0-dim float32."""
    pairs = zip(student, matched_depths(len(student), len(teacher)), strict=True)
    return torch.stack([functional.mse_loss(ours.float(), teacher[depth].float()) for ours, depth in pairs]).mean()


class Distilled(Objective):
    """(1 - weight) * task's loss + weight * `soft_loss` + hidden and attention times their `matched_loss`.

    The teacher is never trained, wrapped, counted or saved; each process has its own copy.
    """

    def __init__(self, config: Config, task: Task, teacher: Teacher, accelerator: Accelerator):
        super().__init__(task, config.recipe.label_smoothing)
        assert isinstance(config.distill, TeacherConfig)
        self.config, self.options, self.teacher, self.accelerator = config, config.distill, teacher, accelerator
        weight, method = self.options.weight, config.method.name
        self.weight = own_weight(method) if weight is None else weight
        self.detailed = bool(self.options.hidden or self.options.attention)
        self.cache: LogitsCache | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the micro-batch, a 0-dim float32 tensor."""
        ours = self.task.outputs(model, batch, self.detailed)
        theirs = self._of_teacher(batch)
        loss = (1 - self.weight) * self.task.loss_of(ours, batch, self.label_smoothing)
        loss = loss + self.weight * soft_loss(ours.logits, theirs.logits, self.options.temperature)
        if self.options.hidden and ours.hidden and theirs.hidden:
            loss = loss + self.options.hidden * matched_loss(ours.hidden, theirs.hidden)
        if self.options.attention and ours.attentions and theirs.attentions:
            loss = loss + self.options.attention * matched_loss(ours.attentions, theirs.attentions)
        return loss

    def _of_teacher(self, batch: Batch) -> Outputs:
        return Outputs(self.cache.rows(batch["index"])) if self.cache else self.of_teacher(batch)

    @torch.no_grad()
    def of_teacher(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, computed in the precision that the student trains in."""
        with self.accelerator.autocast():
            return self.task.outputs(self.teacher.model, batch, self.detailed)

    def check_fit(self, model: nn.Module) -> None:
        """Raises `Refusal` if student and teacher cannot be compared; runs both on the first samples to find out."""
        before, training = random_state(), model.training
        loader = self.task.train_loader(max(2, self.accelerator.num_processes), self.config.seed, "none", 0)
        batch = {key: value.to(self.accelerator.device) for key, value in next(iter(loader)).items()}
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            ours = self.task.outputs(model, batch, self.detailed)
        theirs = self.of_teacher(batch)
        model.train(training)
        restore_random_state(before)
        self._compare(ours, theirs)
        if self.options.cache == "disk" and len(ours.logits) != len(batch.get("index", ())):
            raise Refusal(
                f"distill.cache=disk: {self.config.model.name} on {self.config.data.name} has not one row of logits "
                "for each sample, so they cannot be kept by sample: give distill.cache=none"
            )

    def _compare(self, ours: Outputs, theirs: Outputs) -> None:
        of = f"distill.teacher={self.options.teacher or 'null'} ({self.teacher.label})"
        if ours.logits.shape != theirs.logits.shape:
            raise Refusal(
                f"{of} is for {theirs.logits.shape[-1]} classes, and {self.config.data.name} has "
                f"{ours.logits.shape[-1]}: give a distill.teacher for this data"
            )
        if not torch.isfinite(theirs.logits).all():
            raise Refusal(f"{of} puts out logits that are not finite: give another distill.teacher")
        compared = {"hidden": (ours.hidden, theirs.hidden), "attention": (ours.attentions, theirs.attentions)}
        for key, (mine, other) in compared.items():
            if not (value := getattr(self.options, key)):
                continue
            if not mine or not other:
                who = "the teacher" if mine else "the student"
                raise Refusal(
                    f"distill.{key}={value}: {who} on {self.config.data.name} has none to compare: give distill.{key}=0"
                )
            shapes = tuple(mine[-1].shape), tuple(other[-1].shape)
            if shapes[0] != shapes[1]:
                raise Refusal(
                    f"distill.{key}={value}: the student's are {shapes[0]} and the teacher's {shapes[1]}: give "
                    f"distill.{key}=0 or a teacher of the same width"
                )

    def prepare(self, directory: RunDirectory, say: Callable[[str], None]) -> None:
        """Computes the teacher's logits of all training samples, if they are to be cached and are not yet."""
        say(self.teacher_note)
        if self.options.cache == "disk":
            before = random_state()
            self.cache = LogitsCache(
                directory.checkpoints, self.config, self.task, self.teacher.digest, self.accelerator
            )
            self.cache.fill(lambda batch: self.of_teacher(batch).logits, say)
            restore_random_state(before)  # filling the cache must not move it: a resumed run finds it filled
            self.teacher.model.cpu()

    @property
    def teacher_note(self) -> str:
        """One line that describes the teacher, for the banner."""
        source = weight_source(self.config.method.name, self.weight)
        return (
            f"teacher {self.teacher.label}: weight {self.weight:g} ({source}), temperature {self.options.temperature:g}"
        )

    def record(self) -> dict[str, Any]:
        """For the record: the teacher's name, the digest of its weights, and the weights of its losses."""
        return {
            "teacher": self.teacher.label,
            "teacher_weights": self.teacher.digest,
            "weight": self.weight,
            "weight_source": weight_source(self.config.method.name, self.weight),
            "temperature": self.options.temperature,
            "hidden": self.options.hidden,
            "attention": self.options.attention,
            "cache": self.options.cache,
        }

    def state_dict(self) -> dict[str, Any]:
        """The digest of the teacher's weights; the weights themselves are not in the checkpoint."""
        return {"teacher": self.teacher.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `Refusal` if the teacher is not the one that the run began with."""
        if state.get("teacher", self.teacher.digest) != self.teacher.digest:
            raise Refusal(
                f"distill.teacher: the weights of {self.teacher.label} have changed since this run began: bring them "
                "back, or rerun=true starts over"
            )


def make_objective(config: Config, task: Task, model: nn.Module, accelerator: Accelerator) -> Objective:
    """The configured objective for `model`, which must be on its device and its data open; raises `Refusal`."""
    if not isinstance(config.distill, TeacherConfig):
        return Objective(task, config.recipe.label_smoothing)
    before = random_state()
    teacher = load_teacher(config, task)
    restore_random_state(before)
    teacher.model.to(accelerator.device)
    if config.recipe.channels_last:
        teacher.model.to(memory_format=torch.channels_last)
    objective = Distilled(config, task, teacher, accelerator)
    objective.check_fit(model)
    return objective
