"""What the trainer needs from a task: model, data, loss and metric, in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]


@dataclass
class Outputs:
    """A model's outputs for a micro-batch: one row of `logits` for every sample or token that the loss counts.

    `logits` is (N, classes). `hidden` and `attentions` have one tensor per block where they were asked for, without
    padding.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def say_limit(limit: int | None, what: str) -> str:
    """A sentence that says how data.limit affects the classes; empty without a limit."""
    if limit is None:
        return ""
    return (
        f"at most {limit:,} training {what}, as many of each class as there are, validation and test drawn as they come"
    )


def same_classes(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists of classes are the same in order, as far as known: shards may have only class numbers."""
    plain = [str(number) for number in range(len(first))]
    if not first or not second or (len(first) == len(second) and plain in (list(first), list(second))):
        return True
    return list(first) == list(second)


class Task(ABC):
    """Model, data, loss and metric of one kind of problem; the trainer uses nothing else of them."""

    metric_name: str  # the metrics are fractions in [0, 1]
    higher_is_better: bool = True
    upper_bound: float | None = None  # of the metric; schedule.warmup=auto begins after 5 epochs above half of it
    exclude: tuple[str, ...] = ()  # fnmatch patterns of layers that this task never prunes
    data_name: str
    notes: list[str]  # sentences to show the user once, such as that a classifier was re-initialised

    @property
    def unreadable(self) -> list[str]:
        """The names of the files that were left out of the data."""
        return []

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names of the user's own data, by class number; empty for data with fixed classes."""
        return ()

    def recall(self, class_names: Sequence[str]) -> None:  # noqa: B027
        """Sets the classes named in a finished run's record, so that its model can be built without its data."""

    def follow(self, run: Path, said: str) -> None:  # noqa: B027
        """Reads the data as the finished run in this folder did, which refusals call `said`; before `open_data`."""

    def keep(self, run: Path, begun: bool) -> None:  # noqa: B027
        """Keeps in a run's folder what was made of its data to read it; if the run has begun, takes what is there."""

    @property
    def reading(self) -> dict[str, Any]:
        """What was made of the training data to read it, for the record, so that other data can be read alike."""
        return {}

    @property
    @abstractmethod
    def data_note(self) -> str:
        """A sentence for the banner that says what the data is and how much of it there is."""

    @property
    @abstractmethod
    def data_fingerprint(self) -> str:
        """The first 16 hex digits of a sha256 of the data; raises `RuntimeError` before `open_data`."""

    @property
    @abstractmethod
    def test_is_validation(self) -> bool:
        """Whether the test metric is measured on the same samples as the validation metric during training."""

    @abstractmethod
    def open_data(self) -> None:
        """Opens the data; raises `Refusal` if it is missing or malformed. A dry run never calls this."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model on the CPU in fp32, initialised from the global torch seed; raises `Refusal`."""

    @abstractmethod
    def example_input(self) -> Any:
        """Zeros in the form that the model takes, a batch of one."""

    @abstractmethod
    def train_loader(self, batch_size: int, seed: int, augmentation: str, workers: int) -> DataLoader[Any]:
        """Shuffled training batches; `batch_size` counts all processes (see `pdp.tasks.sampling`)."""

    def ahead(self, loader: Any, device: torch.device) -> Any:
        """The prepared training loader, with what the device does to its batches before the steps take them."""
        return loader

    @abstractmethod
    def evaluation_loader(self, part: str, batch_size: int, workers: int) -> DataLoader[Any]:
        """Every sample of "validation" or "test" once and in order; the last batch may be short."""

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Modules that adapters leave trainable: a classifier's head, which is another for each task."""
        return ()

    def head_parameters(self, model: nn.Module) -> list[str]:
        """The names of the parameters of a model for the open data that have a row for each class."""
        return []

    def evaluation_batch(self, batch_size: int, device: str) -> int:
        """The batch size for evaluation on this type of device, where training uses `batch_size`."""
        return batch_size

    def loss(self, model: nn.Module, batch: Batch, label_smoothing: float) -> Tensor:
        """The mean loss over the micro-batch, a 0-dim float32 tensor."""
        return self.loss_of(self.outputs(model, batch), batch, label_smoothing)

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch, detailed: bool = False) -> Outputs:
        """The model's forward pass; `detailed` asks for hidden states and attentions, if the model has any."""

    @abstractmethod
    def loss_of(self, outputs: Outputs, batch: Batch, label_smoothing: float) -> Tensor:
        """The mean loss of these outputs, a 0-dim float32 tensor."""

    @abstractmethod
    def observe(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What `metrics` needs about every sample: tensors with samples first, one of them int64 "index"."""

    @abstractmethod
    def metrics(self, observations: dict[str, np.ndarray]) -> dict[str, float]:
        """The metrics over all samples, sorted by index; includes `metric_name` and "loss"."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The number of samples in train, validation (0 if the test set serves as validation) and test."""
