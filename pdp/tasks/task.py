"""What the trainer asks of a task: model, data, loss and metric in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]


@dataclass
class Outputs:
    """What a model says of a micro-batch: one row of `logits` for every sample or token that the loss counts.

    `logits` is (N, classes), `hidden` and `attentions` one tensor per block where they were asked for, without padding.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def say_limit(limit: int | None, what: str) -> str:
    """What data.limit did to classes; empty without one."""
    if limit is None:
        return ""
    return (
        f"at most {limit:,} training {what}, as many of each class as there are, validation and test drawn as they come"
    )


def same_classes(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether classes are the same in the same order, as far as is known: shards may have but numbers for them."""
    plain = [str(number) for number in range(len(first))]
    if not first or not second or (len(first) == len(second) and plain in (list(first), list(second))):
        return True
    return list(first) == list(second)


class Task(ABC):
    """Model, data, loss and metric of one kind of problem; the trainer knows nothing else of any of them."""

    metric_name: str  # fractions in [0, 1]
    higher_is_better: bool = True
    upper_bound: float | None = None  # of the metric; schedule.warmup=auto starts after 5 epochs over half of it
    exclude: tuple[str, ...] = ()  # fnmatch patterns of layers that this task never prunes
    data_name: str
    notes: list[str]  # what the user should read once: a classifier made anew, for one

    @property
    def unreadable(self) -> list[str]:
        """Files that were left out of the data, by name."""
        return []

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of own data by their numbers, as folders or tables name them; empty where they are fixed."""
        return ()

    def recall(self, class_names: Sequence[str]) -> None:  # noqa: B027
        """Takes the classes that a finished run's record names, for a model of it where its data is not at hand."""

    @property
    @abstractmethod
    def data_note(self) -> str:
        """A sentence for the banner: what the data is and how much of it there is."""

    @property
    @abstractmethod
    def data_fingerprint(self) -> str:
        """The first 16 hex digits of a sha256 of what the data is; raises `RuntimeError` before `open_data`."""

    @property
    @abstractmethod
    def test_is_validation(self) -> bool:
        """Whether the test metric is of the samples that also monitored the training."""

    @abstractmethod
    def open_data(self) -> None:
        """Opens the data; raises `Refusal` where it is absent or malformed. Dry runs never call it."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model on the CPU in fp32, initialised from the global torch seed; raises `Refusal`."""

    @abstractmethod
    def example_input(self) -> Any:
        """Zeros as the model takes them, a batch of one."""

    @abstractmethod
    def train_loader(self, batch_size: int, seed: int, augmentation: str, workers: int) -> DataLoader[Any]:
        """Shuffled training batches; `batch_size` counts all processes (see `pdp.tasks.sampling`)."""

    @abstractmethod
    def evaluation_loader(self, part: str, batch_size: int, workers: int) -> DataLoader[Any]:
        """Every sample of "validation" or "test" once and in order, the last batch as short as it is."""

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Modules that adapters leave trainable: a classifier's head, which is another for each task."""
        return ()

    def evaluation_batch(self, batch_size: int, device: str) -> int:
        """Samples of a batch that is only measured, on that type of device, where training takes `batch_size`."""
        return batch_size

    def loss(self, model: nn.Module, batch: Batch, label_smoothing: float) -> Tensor:
        """The mean loss over the micro-batch, a 0-dim float32 tensor."""
        return self.loss_of(self.outputs(model, batch), batch, label_smoothing)

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch, detailed: bool = False) -> Outputs:
        """The model's forward; `detailed` asks for hidden states and attentions, where the model has any."""

    @abstractmethod
    def loss_of(self, outputs: Outputs, batch: Batch, label_smoothing: float) -> Tensor:
        """The mean loss of these outputs, a 0-dim float32 tensor."""

    @abstractmethod
    def observe(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What `metrics` needs of every sample: tensors with samples first, among them int64 "index"."""

    @abstractmethod
    def metrics(self, observations: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics over all samples at once, sorted by index; has `metric_name` and "loss"."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The number of samples in train, validation (0: the test set monitors) and test."""
