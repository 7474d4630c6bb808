"""Folders of images, one per class: reading their layout, and the dataset that decodes them as they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.errors import Refusal, Stopped
from pdp.tasks.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageDataset, split_keys
from pdp.tasks.sampling import Key

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class UnreadableImage(Stopped):
    """An image that cannot be decoded; the message is one line, also when it comes out of a worker process."""

    def __init__(self, message: str):
        # A loader raises a worker's exception again with the worker's whole traceback as its only argument.
        super().__init__(message.rsplit("UnreadableImage: ", 1)[-1].strip())


@dataclass
class FolderPart:
    """The images of one folder: paths relative to data.root, their class numbers and sizes in bytes."""

    name: str
    classes: list[str]
    paths: np.ndarray | Chosen  # bytes (N,): one block that forked workers share, where a list would be copied
    labels: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N,)

    def subset(self, positions: np.ndarray) -> FolderPart:
        """The images at these positions."""
        paths = self.paths[positions] if isinstance(self.paths, Chosen) else Chosen(self.paths, positions)
        return FolderPart(self.name, self.classes, paths, self.labels[positions], self.sizes[positions])


class Chosen:
    """Some elements of an array that stays where it is: mapped from a file, it is one for all processes."""

    def __init__(self, whole: np.ndarray, positions: np.ndarray):
        self.whole, self.positions = whole, positions.astype(np.int32)

    def __len__(self) -> int:
        return len(self.positions)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.whole[self.positions], dtype=dtype)

    def __getitem__(self, at: Any) -> Any:
        """One element, or with an array of positions a choice of this choice."""
        chosen = self.positions[at]
        return Chosen(self.whole, chosen) if isinstance(chosen, np.ndarray) else self.whole[chosen]


def scan_folder(root: str, name: str, seen: Callable[[str], None] = lambda folder: None) -> FolderPart | None:
    """Reads `<root>/<name>/<class>/**`, sorted; None where that folder is not there; raises `Refusal`.

    `seen` is told every folder before it is read.
    """
    base = os.path.join(os.path.expanduser(root), name)
    if not os.path.isdir(base):
        return None
    seen(base)
    with os.scandir(base) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise Refusal(f"data.root={root}: {name}/ has no class folders; it needs {name}/<class>/<image>; set data.root")
    paths: list[bytes] = []
    labels: list[int] = []
    sizes: list[int] = []
    empty = []
    for label, class_name in enumerate(classes):
        found = sorted(_images(os.path.join(base, class_name), f"{name}/{class_name}", seen))
        if not found:
            empty.append(class_name)
        paths += [os.fsencode(path) for path, _ in found]
        sizes += [size for _, size in found]
        labels += [label] * len(found)
    if empty:
        raise Refusal(
            f"data.root={root}: {name}/{empty[0]} holds no image{_more(len(empty))}"
            f" (extensions read: {' '.join(EXTENSIONS)}); remove the folder or set data.root"
        )
    return FolderPart(name, classes, np.array(paths), np.array(labels), np.array(sizes, dtype=np.int64))


def _images(folder: str, prefix: str, seen: Callable[[str], None]) -> list[tuple[str, int]]:
    found = []
    seen(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if entry.is_dir():
                found += _images(entry.path, path, seen)
            elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                found.append((path, entry.stat().st_size if os.path.exists(entry.path) else 0))
    return found


def _more(count: int) -> str:
    return f" (nor do {count - 1} others)" if count > 1 else ""


def check_same_classes(root: str, train: FolderPart, other: FolderPart) -> None:
    """Raises `Refusal` where one part has classes that the other lacks, naming the first of them."""
    for have, lack in ((train, other), (other, train)):
        missing = sorted(set(have.classes) - set(lack.classes))
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            count = "a class" if len(missing) == 1 else f"{len(missing)} classes"
            raise Refusal(
                f"data.root={root}: {have.name}/ has {count} that {lack.name}/ lacks ({names});"
                " both must hold the same class folders; set data.root"
            )


def listing_hash(*parts: FolderPart) -> bytes:
    """The sha256 over the sorted (relative path, size) of all images."""
    digest = hashlib.sha256()
    rows = [row for part in parts for row in zip(np.asarray(part.paths).tolist(), part.sizes.tolist(), strict=True)]
    for path, size in sorted(rows):
        digest.update(b"%b\0%d\n" % (path, size))
    return digest.digest()


def resize_side(size: int) -> int:
    """The short side before the middle `size` is cut out: 256 for 224; small images are not cropped."""
    return round(size * 256 / 224) if size > 64 else size


class FolderImages(ImageDataset):
    """Images decoded as they are read; one that cannot be is an error, or with `skip` left out of its batch.

    Batches hold bytes, a quarter of what workers and the device's bus would carry as float32: the task normalises them.
    """

    def __init__(self, root: str, part: FolderPart, size: int, skip: bool):
        super().__init__(part.labels, size, IMAGENET_MEAN, IMAGENET_STD)
        self.root, self.paths = os.path.expanduser(root), part.paths
        # Shared memory: worker processes write down what they could not read, the main process reads it.
        self.skipped = torch.zeros(len(part.paths), dtype=torch.uint8).share_memory_() if skip else None

    def unreadable(self) -> list[str]:
        """Paths, relative to data.root, of the images left out so far."""
        if self.skipped is None:
            return []
        return [os.fsdecode(self.paths[i]) for i in np.flatnonzero(self.skipped.numpy())]

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        epochs, indices = split_keys(keys)
        random = self.augmentation is not None and self.augmentation.name == "random_resized_crop"
        draws = self.augmentation.draws(epochs, indices) if random and self.augmentation else None
        pixels = np.empty((len(keys), 3, self.size, self.size), dtype=np.uint8)
        kept: list[int] = []
        for position, index in enumerate(indices):
            image = self._decode(int(index))
            if image is not None:
                cut = self._middle(image) if draws is None else self._random(image, draws[position : position + 1])
                pixels[len(kept)] = cut.transpose(2, 0, 1)
                kept.append(position)
        if not kept and self.augmentation is not None:
            raise UnreadableImage(f"every image of a batch is unreadable, the last {self._name(int(indices[-1]))}")
        epochs, indices = epochs[kept], indices[kept]
        batch = torch.from_numpy(pixels[: len(kept)])
        if self.augmentation is not None and self.augmentation.name == "pad_crop_flip":
            batch = self.augmentation.pad_crop_flip(batch, epochs, indices)
        return self.labelled(batch, indices)

    def _name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def _decode(self, index: int) -> Any:
        from PIL import Image

        try:
            with Image.open(self._name(index)) as image:
                image.load()
                return image if image.mode == "RGB" else image.convert("RGB")  # which would copy an RGB image
        except Exception as error:  # decoders raise many kinds for damaged files
            if self.skipped is None:
                raise UnreadableImage(
                    f"{self._name(index)} cannot be read as an image ({type(error).__name__});"
                    " repair it, or leave such images out: data.unreadable=skip"
                ) from None
            self.skipped[index] = 1
            return None

    def _random(self, image: Any, draws: np.ndarray) -> np.ndarray:
        """A random box of a PIL image, enlarged, half of them mirrored -> uint8 (size, size, 3)."""
        from PIL.Image import Resampling

        assert self.augmentation is not None
        width, height = image.size
        top, left, rows, columns = self.augmentation.boxes_of(draws, np.array([height]), np.array([width]))[0].tolist()
        box = image.crop((left, top, left + columns, top + rows))
        pixels = np.asarray(box.resize((self.size, self.size), Resampling.BILINEAR))
        return pixels[:, ::-1] if draws[0, 0] < 0.5 else pixels

    def _middle(self, image: Any) -> np.ndarray:
        """The middle of a PIL image whose short side is resized -> uint8 (size, size, 3)."""
        from torchvision.transforms.v2 import functional as transforms

        image = transforms.resize(image, [resize_side(self.size)])
        return np.asarray(transforms.center_crop(image, [self.size, self.size]))
