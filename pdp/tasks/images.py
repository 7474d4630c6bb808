"""Image classification: the data sets, models, loss and metrics of `model.task=images`."""

from __future__ import annotations

import difflib
import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from pdp.config.schema import Config
from pdp.errors import Refusal, Stopped
from pdp.tasks import folder_images as folders
from pdp.tasks import image_data as memory
from pdp.tasks.image_augmentation import check_augmentation
from pdp.tasks.image_models import build_model, check_name
from pdp.tasks.sampling import (
    EpochBatchSampler,
    balanced_limit,
    evaluation_loader,
    stratified_split,
    training_loader,
)
from pdp.tasks.task import Batch, Outputs, Task

_UNASKED = (
    "No ImageNet was named (data.root= or IMAGENET_DIR), so this trains on scikit-learn's handwritten digits:"
    " 1,797 grey 8x8 images, 10 classes."
)


class ImagesTask(Task):
    """Images with one class each; the metric is top-1 accuracy."""

    metric_name = "top1"
    upper_bound = 1.0

    def __init__(self, config: Config):
        self.config = config
        data: Any = config.data
        self._check(data)
        check_name(config.model)
        self.image_set = memory.IMAGE_SETS[data.name]
        self.data_name = data.name
        self.classes = self.image_set.classes
        self.image_size = data.image_size or max(self.image_set.size, config.model.smallest_input)
        self.notes: list[str] = []
        self._noise = False
        self._fingerprint: str | None = None
        self._parts: dict[str, memory.ImageDataset] = {}

    @staticmethod
    def _check(data: Any) -> None:
        if data.name not in memory.IMAGE_SETS:
            near = difflib.get_close_matches(str(data.name), memory.IMAGE_SETS, 3, 0.4) or memory.IMAGE_SETS
            raise Refusal(f"data.name={data.name} is unknown for images; near it: {', '.join(near)}; set data")
        if not 0 <= data.validation < 1:
            raise Refusal(f"data.validation={data.validation} must be a share of train, at least 0 and below 1")
        if data.limit is not None and data.limit < 1:
            raise Refusal(f"data.limit={data.limit} must be at least 1, or null")
        if data.image_size is not None and data.image_size < 1:
            raise Refusal(f"data.image_size={data.image_size} must be at least 1 pixel, or null for the data's own")
        if data.unreadable not in ("stop", "skip"):
            raise Refusal(f"data.unreadable={data.unreadable} is unknown; it can be stop, skip")

    @property
    def data_note(self) -> str:
        """A sentence for the banner; the sizes of the parts are in it once the data is open."""
        known, size = self.image_set, f"{self.image_size}x{self.image_size}"
        if getattr(self.config.data, "unasked", False):
            note = _UNASKED
        elif self._noise:
            note = f"Noise in the shape of {known.title} ({self.classes} classes), because the data is not at hand."
        else:
            note = f"{known.title}: {self.classes} classes."
        if not self._parts:
            return f"{note} Images enter at {size}."
        sizes = self.sizes()
        held = f"{sizes['validation']:,} validation, " if sizes["validation"] else "none held out for validation, "
        return f"{note} {sizes['train']:,} train, {held}{sizes['test']:,} test images, entering at {size}."

    @property
    def data_fingerprint(self) -> str:
        """The first 16 hex digits of a sha256 of the images (in memory) or of their paths and sizes (folders)."""
        if self._fingerprint is None:
            raise RuntimeError("the fingerprint is known after open_data()")
        return self._fingerprint

    @property
    def test_is_validation(self) -> bool:
        """True without a validation split, and for ImageNet, which has no labelled test set."""
        return self.config.data.validation == 0 or self.data_name == "imagenet"

    @property
    def unreadable(self) -> list[str]:
        """Paths of the images that this process and its workers left out (data.unreadable=skip)."""
        parts = [part for part in self._parts.values() if isinstance(part, folders.FolderImages)]
        return sorted({path for part in parts for path in part.unreadable()})

    def open_data(self) -> None:
        """Reads in-memory sets and listings of folders; raises `Refusal`. Without train/, a folder can be evaluated."""
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
        self._fingerprint = self._identify(memory.content_hash(train, test))

        def part(arrays: memory.Arrays, positions: np.ndarray) -> memory.ImageDataset:
            positions = positions[balanced_limit(arrays[1][positions], self.config.data.limit)]
            chosen = (arrays[0][torch.from_numpy(positions)], arrays[1][positions])
            return memory.MemoryImages(chosen, self.image_size, mean, std)

        self._parts = {"train": part(train, kept), "test": part(test, np.arange(len(test[1])))}
        if self.config.data.validation:
            self._parts["validation"] = part(train, held)

    def _open_folder(self) -> None:
        data: Any = self.config.data
        layout = "train/<class>/ and val/<class>/" + ("" if self.data_name == "imagenet" else " (or test/<class>/)")
        if data.root is None:
            variable = " or IMAGENET_DIR" if self.data_name == "imagenet" else ""
            raise Refusal(f"data.root{variable} is not set; data={self.data_name} needs data.root=<folder of {layout}>")
        memory.check_root(data.root, layout)
        train, val = folders.scan_folder(data.root, "train"), folders.scan_folder(data.root, "val")
        test = folders.scan_folder(data.root, "test") if self.data_name == "image_folder" else None
        test, val = (test, val) if test is not None else (val, None)
        if test is None:
            raise Refusal(f"data.root={data.root} has nothing to test on; it must hold {layout}; set data.root")
        found = [part for part in (train, val, test) if part is not None]
        for part in found[1:]:
            folders.check_same_classes(data.root, found[0], part)
        count = len(found[0].classes)
        if self.data_name == "imagenet" and count != self.image_set.classes:
            raise Refusal(f"data.root={data.root} has {count} classes, not 1,000; set data.root or data=image_folder")
        self.classes = count
        self._fingerprint = self._identify(folders.listing_hash(*found))
        parts = {"test": test}
        if train is not None:
            # A val/ beside test/ is the validation set; else a share of train is held out.
            kept, held = self._split(train.labels) if val is None else (np.arange(len(train.labels)), None)
            parts["train"] = train.subset(kept)
            if data.validation and held is not None:
                parts["validation"] = train.subset(held)
        if data.validation and val is not None:
            parts["validation"] = val
        skip = data.unreadable == "skip"
        self._parts = {}
        for name, part in parts.items():
            chosen = part.subset(balanced_limit(part.labels, data.limit))
            self._parts[name] = folders.FolderImages(data.root, chosen, self.image_size, skip)

    def _split(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = self.config.data.validation
        kept, held = stratified_split(labels, share)
        if share and not (len(held) and len(kept)):
            raise Refusal(f"data.validation={share} of {len(labels)} training images leaves a part empty; change it")
        return kept, held

    def _identify(self, content: bytes) -> str:
        digest = hashlib.sha256(content)
        if self.config.data.limit is not None:
            digest.update(f"limit={self.config.data.limit}".encode())
        if self._noise:
            digest.update(b"noise")
        return digest.hexdigest()[:16]

    def sizes(self) -> dict[str, int]:
        """Samples in each part; before `open_data` the published sizes (a folder is taken for ImageNet)."""
        if self._parts:
            return {name: len(self._parts.get(name, ())) for name in ("train", "validation", "test")}
        data = self.config.data
        held = int(self.image_set.train * data.validation + 0.5)
        sizes = {"train": self.image_set.train - held, "validation": held, "test": self.image_set.test}
        return {name: min(size, data.limit or size) for name, size in sizes.items()}

    def build_model(self) -> nn.Module:
        """The model for the data's classes, fp32, on the CPU; `notes` says what is not pretrained; raises `Refusal`."""
        model, notes = build_model(self.config.model, self.classes, self.example_input())
        self.notes += [note for note in notes if note not in self.notes]
        return model

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
        """Shuffled, augmented batches; `batch_size` is that of all processes together. Raises `Refusal`."""
        check_augmentation(augmentation)
        dataset = self._part("train").augmented(augmentation, seed)
        return training_loader(dataset, EpochBatchSampler(len(dataset), batch_size, seed), workers)

    def evaluation_loader(self, part: str, batch_size: int, workers: int) -> DataLoader[Any]:
        """Every sample of "validation" (the test set where data.validation is 0) or "test" once, in order."""
        return evaluation_loader(self._part(part), batch_size, workers)

    def evaluation_batch(self, batch_size: int, device: str) -> int:
        """Small images by the thousand on a GPU, which would wait for the host otherwise."""
        return max(batch_size, 1024) if device != "cpu" and self.image_size <= 64 else batch_size

    def outputs(self, model: nn.Module, batch: Batch, detailed: bool = False) -> Outputs:
        """The logits in float32; images have no hidden states that would be compared."""
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
        # A batch is empty where all of it was left out as unreadable; the model is spared it.
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
        """top1, top5 where there are over five classes, and loss: means over all samples in float64."""
        right = observations["prediction"] == observations["label"]
        if not len(right):
            raise Stopped("there is no readable image to measure on")
        result = {"top1": float(np.mean(right, dtype=np.float64))}
        if self.classes > 5:
            result["top5"] = float(np.mean(observations["top5"], dtype=np.float64))
        return result | {"loss": float(np.mean(observations["loss"], dtype=np.float64))}
