"""Image data sets that fit in memory: how they are read, and the dataset that takes batches out of one tensor."""

from __future__ import annotations

import copy
import difflib
import gzip
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from pdp.errors import Refusal
from pdp.tasks.image_augmentation import Augmentation
from pdp.tasks.sampling import Key, stratified_split

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ENLARGE_ONCE = 2**30  # bytes; a set that would be larger after resizing is resized batch by batch


@dataclass(frozen=True)
class ImageSet:
    """What is known about a data set before it is opened."""

    title: str
    classes: int
    size: int  # height and width of its images as stored, in pixels
    channels: int
    train: int
    test: int
    in_memory: bool


IMAGE_SETS = {
    "digits": ImageSet("scikit-learn's handwritten digits", 10, 8, 1, 1438, 359, True),
    "fashion_mnist": ImageSet("Fashion-MNIST", 10, 28, 1, 60_000, 10_000, True),
    "cifar10": ImageSet("CIFAR-10", 10, 32, 3, 50_000, 10_000, True),
    "imagenet": ImageSet("ImageNet", 1000, 224, 3, 1_281_167, 50_000, False),
    "image_folder": ImageSet("a folder of images", 1000, 224, 3, 1_281_167, 50_000, False),
}


def check_data(data: Any) -> None:
    """Raises `Refusal` for an unknown name of an image data set or a value that it does not allow."""
    if data.name not in IMAGE_SETS:
        near = difflib.get_close_matches(str(data.name), IMAGE_SETS, 3, 0.4) or IMAGE_SETS
        raise Refusal(f"data.name={data.name} is unknown for images; near it: {', '.join(near)}; set data")
    if not 0 <= data.validation < 1:
        raise Refusal(f"data.validation={data.validation} must be a share of train, at least 0 and below 1")
    if data.limit is not None and data.limit < 1:
        raise Refusal(f"data.limit={data.limit} must be at least 1, or null")
    if data.image_size is not None and data.image_size < 1:
        raise Refusal(f"data.image_size={data.image_size} must be at least 1 pixel, or null for the data's own")
    if data.unreadable not in ("stop", "skip"):
        raise Refusal(f"data.unreadable={data.unreadable} is unknown; it can be stop, skip")


Arrays = tuple[Tensor, np.ndarray]  # images (N, C, H, W), uint8 or float32 in [0, 1]; labels int64 (N,)


def read_digits() -> tuple[Arrays, Arrays]:
    """Train and test of scikit-learn's handwritten digits: a fixed stratified split into 80 and 20 %."""
    rows = _digits()
    images = torch.from_numpy(rows[:, :64].reshape(-1, 8, 8).astype(np.float32) / 16)[:, None]
    labels = rows[:, 64].astype(np.int64)
    train, test = stratified_split(labels, 0.2, salt=1)
    return (images[torch.from_numpy(train)], labels[train]), (images[torch.from_numpy(test)], labels[test])


def _digits() -> np.ndarray:
    """Pixels from 0 to 16 and the label of every digit, (1797, 65).

    Read from scikit-learn's file where it is found, because importing scikit-learn takes longer than all else that a
    run of these digits needs.
    """
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if path is not None and path.is_file():
        with gzip.open(path, "rt", encoding="ascii") as file:
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def read_torchvision(name: str, root: str | None, kind: Any = None) -> tuple[Arrays, Arrays]:
    """Train and test of fashion_mnist or cifar10 under `root`, in torchvision's layout; raises `Refusal`."""
    from torchvision import datasets

    title, layout, default = {
        "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/*-ubyte", datasets.FashionMNIST),
        "cifar10": ("CIFAR10", "cifar-10-batches-py/", datasets.CIFAR10),
    }[name]
    if root is None:
        raise Refusal(f"data.root is not set; data={name} needs data.root=<the folder that holds {layout}>")
    check_root(root, layout)
    parts = []
    for train in (True, False):
        try:
            # Never downloads, so that a mistyped root is not filled with data.
            loaded = (kind or default)(os.path.expanduser(root), train=train, download=False)
        except Exception as error:  # torchvision raises many types of exceptions for missing and damaged files
            first = str(error).strip().split("\n")[0][:100]
            download = f"from torchvision.datasets import {title}; {title}('{root}', download=True)"
            raise Refusal(
                f"data.root={root} holds no whole {layout} ({type(error).__name__}: {first});"
                f' set data.root, or download once: python -c "{download}"'
            ) from None
        images = torch.as_tensor(loaded.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        parts.append((images, np.asarray(loaded.targets, dtype=np.int64)))
    return parts[0], parts[1]


def check_root(root: str, layout: str) -> None:
    """Raises `Refusal` where `data.root` is not a folder, or is an empty one."""
    folder = os.path.expanduser(root)
    if not os.path.isdir(folder):
        raise Refusal(f"data.root={root} does not exist or is no folder; it must hold {layout}; set data.root")
    with os.scandir(folder) as entries:
        if next(entries, None) is None:
            raise Refusal(f"data.root={root} is empty; it must hold {layout}; set data.root")


def make_noise(image_set: ImageSet, size: int, train: int = 64, test: int = 32) -> tuple[Arrays, Arrays]:
    """Seeded random uint8 images with the shape and class count of a data set: train and test."""
    rng = np.random.Generator(np.random.PCG64(0))
    shape = (image_set.channels, size, size)
    images = torch.from_numpy(rng.integers(0, 256, (train + test, *shape), dtype=np.uint8))
    labels = np.arange(train + test, dtype=np.int64) % image_set.classes
    return (images[:train], labels[:train]), (images[train:], labels[train:])


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1]."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    means, deviations = [], []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].numpy()
        means.append(float(pixels.mean(dtype=np.float64)) / scale)
        deviations.append(max(float(pixels.std(dtype=np.float64)) / scale, 1e-6))
    return tuple(means), tuple(deviations)


def content_hash(*parts: Arrays) -> bytes:
    """The sha256 of all images and labels."""
    digest = hashlib.sha256()
    for images, labels in parts:
        digest.update(f"{images.dtype} {tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().data)
        digest.update(np.ascontiguousarray(labels).data)
    return digest.digest()


def split_keys(keys: list[Key]) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, indices) of a batch's keys, both int64 (N,)."""
    pairs = np.asarray(keys, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def model_input(images: Tensor) -> Tensor:
    """A batch's images as the model takes them: uint8 is normalised on its device, float32 returned as it is."""
    return normalised(images) if images.dtype == torch.uint8 else images


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float32, normalised by ImageNet's mean and standard deviation, on the same device."""
    mean, std = (_on_device(values, pixels.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.float().div_(255).sub_(mean).div_(std)


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[None, :, None, None]


class ImageDataset(Dataset[dict[str, Tensor]]):
    """Images with labels, read a whole batch at a time by (epoch, index) keys; only training uses `augmentation`."""

    def __init__(self, labels: np.ndarray, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.labels, self.size = labels, size
        self.mean = torch.tensor(mean)[None, :, None, None]
        self.std = torch.tensor(std)[None, :, None, None]
        self.augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        raise NotImplementedError

    def augmented(self, name: str, seed: int) -> ImageDataset:
        """The same images with augmentation as they are read; shares all storage with this data set."""
        dataset = copy.copy(self)
        dataset.augmentation = None if name == "none" else Augmentation(name, seed)
        return dataset

    def finish(self, images: Tensor, indices: np.ndarray) -> dict[str, Tensor]:
        """A batch made from float32 images in [0, 1]: normalised, three channels, with labels and indices."""
        return self.labelled((images - self.mean) / self.std, indices)

    def labelled(self, images: Tensor, indices: np.ndarray) -> dict[str, Tensor]:
        """A batch of images expanded to three channels, with labels and indices."""
        return {
            "image": images.expand(-1, 3, -1, -1).contiguous(),
            "label": torch.from_numpy(self.labels[indices]),
            "index": torch.from_numpy(indices),
        }


class MemoryImages(ImageDataset):
    """Images held in one tensor, resized once if that fits in memory; a batch is selected by index."""

    def __init__(self, arrays: Arrays, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__(arrays[1], size, mean, std)
        self.images = arrays[0]
        count, channels = self.images.shape[:2]
        if self.images.shape[-1] != size and count * channels * size * size * 4 <= _ENLARGE_ONCE:
            self.images = torch.cat([self._scaled(chunk) for chunk in self.images.split(1024)])

    def _scaled(self, images: Tensor) -> Tensor:
        """float32 in [0, 1], resized to the configured size."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        if images.shape[-1] == self.size:
            return images
        smaller = images.shape[-1] > self.size
        return functional.interpolate(
            images, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=smaller
        )

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        epochs, indices = split_keys(keys)
        images = self._scaled(self.images[torch.from_numpy(indices)])
        if self.augmentation is not None:
            crop = self.augmentation.name == "pad_crop_flip"
            augment = self.augmentation.pad_crop_flip if crop else self.augmentation.resized_crop
            images = augment(images, epochs, indices)
        return self.finish(images, indices)
