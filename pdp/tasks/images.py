"""Image classification: the data sets, models, loss and metrics of `model.task=images`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from pdp.config.schema import Config
from pdp.errors import Refusal, Stopped
from pdp.tasks import image_data as memory
from pdp.tasks.device_decoding import DecodedAhead, check_decoding
from pdp.tasks.folder_images import FolderImages
from pdp.tasks.image_augmentation import check_augmentation
from pdp.tasks.image_models import build_model, check_name, rows_of_classes
from pdp.tasks.image_parts import processors
from pdp.tasks.own_images import read_images, say_classes
from pdp.tasks.sampling import (
    EpochBatchSampler,
    balanced_limit,
    drawn_limit,
    evaluation_loader,
    keeping_split,
    stratified_split,
    training_loader,
)
from pdp.tasks.task import Batch, Outputs, Task, say_limit
from pdp.wording import one_line

_OWN_RECIPE = " Recipe own_images, its times as fractions of the run; recipe=imagenet is ImageNet's."
_UNASKED = (
    "No ImageNet was named (data.root= or IMAGENET_DIR), so this trains on scikit-learn's handwritten digits:"
    " 1,797 grey 8x8 images, 10 classes."
)


class ImagesTask(Task):
    """Images with one class each; the metric is top-1 accuracy in [0, 1]."""

    metric_name = "top1"
    upper_bound = 1.0

    def __init__(self, config: Config):
        self.config = config
        data: Any = config.data
        memory.check_data(data)
        check_decoding(data, config.recipe.augmentation)
        check_name(config.model)
        self.image_set = memory.IMAGE_SETS[data.name]
        self.data_name = data.name
        self.classes = self.image_set.classes
        self.image_size = data.image_size or max(self.image_set.size, config.model.smallest_input)
        self.notes: list[str] = []
        self._noise = False
        self._names: tuple[str, ...] = ()
        self._layout, self._damaged = "", 0
        self._fingerprint: str | None = None
        self._parts: dict[str, memory.ImageDataset] = {}

    @property
    def data_note(self) -> str:
        """A sentence for the banner; it gives the sizes of the parts once the data is open."""
        known, size = self.image_set, f"{self.image_size}x{self.image_size}"
        if getattr(self.config.data, "unasked", False):
            note = _UNASKED
        elif self._noise:
            note = f"Noise in the shape of {known.title} ({self.classes} classes), because the data is not at hand."
        else:
            shown = f" ({say_classes(self._names)})" if self._names and self.data_name != "imagenet" else ""
            note = f"{known.title}: {self.classes} classes{shown}."
        recipe = _OWN_RECIPE if self.config.recipe.name == "own_images" else ""
        if not self._parts:
            return f"{note} Images enter at {size}.{recipe}"
        sizes = self.sizes()
        held = f"{sizes['validation']:,} validation, " if sizes["validation"] else "none held out for validation, "
        said = [f"{sizes['train']:,} train, {held}{sizes['test']:,} test images, entering at {size}", self._layout]
        if self._damaged:
            said.append(f"{self._damaged:,} cannot be read and are left out")
        said.append(say_limit(self.config.data.limit, "images"))
        return f"{note} {'; '.join(filter(None, said))}.{recipe}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names from folders or shards; empty for data sets with fixed classes."""
        return self._names

    def recall(self, class_names: Sequence[str]) -> None:
        """Sets the classes from a finished run's record, until the images are opened."""
        if class_names and not self.image_set.in_memory:
            self._take_classes(class_names)

    @property
    def data_fingerprint(self) -> str:
        """The first 16 hex digits of a sha256 of images and labels in their order (of a sample, for large sets)."""
        if self._fingerprint is None:
            raise RuntimeError("the fingerprint is known after open_data()")
        return self._fingerprint

    @property
    def test_is_validation(self) -> bool:
        """True without a validation split, and for ImageNet, whose test set has no public labels."""
        return self.config.data.validation == 0 or self.data_name == "imagenet"

    @property
    def unreadable(self) -> list[str]:
        """Paths of the images that this process and its workers left out as unreadable (data.unreadable=skip)."""
        parts = [part for part in self._parts.values() if isinstance(part, FolderImages)]
        return sorted({path for part in parts for path in part.unreadable()})

    def open_data(self) -> None:
        """Reads in-memory data, or lists image folders (without train/ they can be evaluated); raises `Refusal`."""
        data = self.config.data
        absent = data.root is None or not os.path.isdir(os.path.expanduser(data.root))
        self._noise = data.noise_if_absent and absent and self.data_name != "digits"
        if self._noise:
            self._open_arrays(*memory.make_noise(self.image_set, min(self.image_set.size, self.image_size)))
        elif self.data_name == "digits":
            self._open_arrays(*memory.read_digits())
        elif self.image_set.in_memory:
            self._open_arrays(*memory.read_torchvision(self.data_name, data.root))
        else:
            self._open_folder()

    def _open_arrays(self, train: memory.Arrays, test: memory.Arrays) -> None:
        kept, held = self._split(train[1])
        if self.image_set.in_memory:
            mean, std = memory.statistics(train[0][torch.from_numpy(kept)])
        else:
            mean, std = memory.IMAGENET_MEAN, memory.IMAGENET_STD
        measured = [len(test[1]), len(held) if self.config.data.validation else 0]
        self._fingerprint = self._identify(memory.content_hash(train, test), max(measured))

        def part(name: str, arrays: memory.Arrays, positions: np.ndarray) -> memory.ImageDataset:
            positions = positions[self._limited(name, arrays[1][positions])]
            chosen = (arrays[0][torch.from_numpy(positions)], arrays[1][positions])
            return memory.MemoryImages(chosen, self.image_size, mean, std)

        self._parts = {"train": part("train", train, kept), "test": part("test", test, np.arange(len(test[1])))}
        if self.config.data.validation:
            self._parts["validation"] = part("validation", train, held)

    def _open_folder(self) -> None:
        data: Any = self.config.data
        found = read_images(data, os.path.join(self.config.output_dir, ".cache"))
        self._take_classes(found.classes)
        self._layout, self._damaged = found.layout, found.damaged
        parts = {"test": found.test}
        if found.train is not None:
            parts["train"] = found.train
            if found.validation is None:  # else validation is held out of train
                kept, held = self._split(found.train.labels)
                parts["train"] = found.train.subset(kept)
                if data.validation:
                    parts["validation"] = found.train.subset(held)
        if data.validation and found.validation is not None:
            parts["validation"] = found.validation
        measured = [len(part.labels) for name, part in parts.items() if name != "train"]
        self._fingerprint = self._identify(found.content, max(measured))
        self._parts = {}
        for name, part in parts.items():
            chosen = part.subset(self._limited(name, part.labels))
            # Published ImageNet models were trained without applying the EXIF orientation, which few of its images
            # have.
            turned = self.data_name != "imagenet"
            self._parts[name] = FolderImages(data.root, chosen, self.image_size, data.unreadable == "skip", turned)

    def _take_classes(self, names: Sequence[str]) -> None:
        if self.data_name == "imagenet" and len(names) != self.image_set.classes:
            root = self.config.data.root
            raise Refusal(f"data.root={root} has {len(names)} classes, not 1,000; set data.root or data=image_folder")
        self._names, self.classes = tuple(names), len(names)

    def _limited(self, name: str, labels: np.ndarray) -> np.ndarray:
        """The positions that data.limit leaves: equal counts per class in train, unchanged class shares elsewhere."""
        limit = self.config.data.limit
        return balanced_limit(labels, limit) if name == "train" else drawn_limit(len(labels), limit)

    def _split(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = self.config.data.validation
        split = keeping_split if self._names else stratified_split
        kept, held = split(labels, share)
        if share and not (len(held) and len(kept)):
            raise Refusal(f"data.validation={share} of {len(labels)} training images leaves a part empty; change it")
        return kept, held

    def _identify(self, content: bytes, measured: int) -> str:
        """The fingerprint; `measured` is the number of samples of the largest part other than train."""
        digest, limit = hashlib.sha256(content), self.config.data.limit
        if limit is not None:
            # Earlier versions limited the test set to equal counts per class; a run whose test set is not limited keeps
            # its fingerprint.
            digest.update(f"limit={limit}{', test as drawn' if limit < measured else ''}".encode())
        if self._noise:
            digest.update(b"noise")
        return digest.hexdigest()[:16]

    def sizes(self) -> dict[str, int]:
        """The number of samples in each part; before `open_data` the published sizes (a folder counts as ImageNet)."""
        if self._parts:
            return {name: len(self._parts.get(name, ())) for name in ("train", "validation", "test")}
        data = self.config.data
        held = int(self.image_set.train * data.validation + 0.5)
        sizes = {"train": self.image_set.train - held, "validation": held, "test": self.image_set.test}
        return {name: min(size, data.limit or size) for name, size in sizes.items()}

    def build_model(self) -> nn.Module:
        """The model for the data's classes, fp32, on the CPU; `notes` names parts not pretrained; raises `Refusal`."""
        if self.classes < 2 and "train" in self._parts:
            raise Refusal(
                f"data.root={self.config.data.root} has one class, {one_line(self._names[0])}, and two are needed to "
                "train: set data.root to the folder that holds the class folders, or their train/ and val/"
            )
        model, notes = build_model(self.config.model, self.classes, self.example_input())
        self.notes += [note for note in notes if note not in self.notes]
        return model

    def head_parameters(self, model: nn.Module) -> list[str]:
        """The parameters with a row for each class."""
        return rows_of_classes(self.config.model, model, self.classes)

    def example_input(self) -> Tensor:
        """Zeros, float32 (1, 3, H, W)."""
        return torch.zeros(1, 3, self.image_size, self.image_size)

    def _part(self, name: str) -> memory.ImageDataset:
        if not self._parts:
            raise RuntimeError("open_data() comes first")
        if name == "validation" and not self.config.data.validation:
            name = "test"
        if name not in self._parts:
            root = self.config.data.root
            raise Refusal(f"data.root={root} has no train/ folder, so there are no {name} images; set data.root")
        return self._parts[name]

    def train_loader(self, batch_size: int, seed: int, augmentation: str, workers: int) -> DataLoader[Any]:
        """Shuffled, augmented batches; `batch_size` is the sum over all processes. Raises `Refusal`."""
        check_augmentation(augmentation)
        dataset = self._part("train").augmented(augmentation, seed)
        if self._decodes_there(dataset):
            dataset = dataset.left_encoded()
        sampler = EpochBatchSampler(len(dataset), batch_size, seed)
        return training_loader(dataset, sampler, self._useful(workers, len(sampler)))

    def _decodes_there(self, dataset: memory.ImageDataset) -> TypeGuard[FolderImages]:
        """Whether data.decode=gpu is for this data set: calibration, without augmentation, is decoded as ever."""
        asked = self.config.data.decode == "gpu" and isinstance(dataset, FolderImages)  # type: ignore[attr-defined]
        return asked and dataset.augmentation is not None

    def ahead(self, loader: Any, device: torch.device) -> Any:
        """Training batches decoded on the device, where data.decode=gpu asks for it."""
        dataset = loader.dataset
        return DecodedAhead(loader, device, dataset) if getattr(dataset, "encoded", False) else loader

    def evaluation_loader(self, part: str, batch_size: int, workers: int) -> DataLoader[Any]:
        """Every sample of "validation" (the test set if data.validation is 0) or "test", once and in order."""
        dataset = self._part(part)
        return evaluation_loader(dataset, batch_size, self._useful(workers, -(-len(dataset) // batch_size)))

    def _useful(self, workers: int, batches: int) -> int:
        """The number of loader processes that are of use: a small data set has fewer batches than workers."""
        return max(0, min(workers, batches - 1, processors())) if self.data_name == "image_folder" else workers

    def evaluation_batch(self, batch_size: int, device: str) -> int:
        """A large batch for small images on a GPU, which would otherwise wait for the host."""
        return max(batch_size, 1024) if device != "cpu" and self.image_size <= 64 else batch_size

    def outputs(self, model: nn.Module, batch: Batch, detailed: bool = False) -> Outputs:
        """The logits in float32; image models provide no hidden states for distillation."""
        if not len(batch["label"]):
            raise Stopped("every image of a batch is unreadable; see data.unreadable")
        return Outputs(model(memory.model_input(batch["image"])).float())

    def loss_of(self, outputs: Outputs, batch: Batch, label_smoothing: float) -> Tensor:
        """Cross entropy, the mean over the micro-batch."""
        return functional.cross_entropy(outputs.logits, batch["label"], label_smoothing=label_smoothing)

    @torch.no_grad()
    def observe(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All (N,): int64 index, label, prediction; bool top5 (the label is among five); float32 unsmoothed loss."""
        labels = batch["label"]
        # If every image of a batch was left out as unreadable, the model is not called.
        empty = torch.zeros(0, self.classes, device=labels.device)
        logits = model(memory.model_input(batch["image"])).float() if len(labels) else empty
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        return {
            "index": batch["index"],
            "label": labels,
            "prediction": logits.argmax(1),
            "top5": (best == labels[:, None]).any(1),
            "loss": functional.cross_entropy(logits, labels, reduction="none"),
        }

    def metrics(self, observations: dict[str, np.ndarray]) -> dict[str, float]:
        """top1, top5 (with more than five classes) and loss: means over all samples, in float64."""
        right = observations["prediction"] == observations["label"]
        if not len(right):
            raise Stopped("there is no readable image to measure on")
        result = {"top1": float(np.mean(right, dtype=np.float64))}
        if self.classes > 5:
            result["top5"] = float(np.mean(observations["top5"], dtype=np.float64))
        return result | {"loss": float(np.mean(observations["loss"], dtype=np.float64))}
