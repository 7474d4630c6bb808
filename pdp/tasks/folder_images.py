"""The dataset that decodes images on request, from folders, parquet shards or tar files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.errors import Stopped
from pdp.tasks.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageDataset, split_keys
from pdp.tasks.image_decoding import read_rgb
from pdp.tasks.image_parts import ImagePart
from pdp.tasks.sampling import Key


class UnreadableImage(Stopped):
    """An image that cannot be decoded; the message is one line, even when the error comes from a worker process."""

    def __init__(self, message: str):
        # A DataLoader raises a worker's exception again with the worker's whole traceback as its only argument.
        super().__init__(message.rsplit("UnreadableImage: ", 1)[-1].strip())


def resize_side(size: int) -> int:
    """The length of the short side, in pixels, before the central crop: 256 for 224; small images are not cropped."""
    return round(size * 256 / 224) if size > 64 else size


class FolderImages(ImageDataset):
    """Images decoded as they are read; an unreadable one is an error or, with `skip`, left out of its batch.

    Batches hold uint8, a quarter of the bytes of float32 to pass from the workers to the device; the task normalises
    them there.
    """

    def __init__(self, root: str, part: ImagePart, size: int, skip: bool, turned: bool):
        super().__init__(part.labels, size, IMAGENET_MEAN, IMAGENET_STD)
        self.root, self.part, self.turned = root, part, turned
        # In shared memory: worker processes mark the images that they could not read, and the main process reads the
        # marks.
        self.skipped = torch.zeros(len(part), dtype=torch.uint8).share_memory_() if skip else None

    def unreadable(self) -> list[str]:
        """Names, relative to data.root, of the images left out so far."""
        if self.skipped is None:
            return []
        return [self._name(int(i)) for i in np.flatnonzero(self.skipped.numpy())]

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
        return self.part.source.name(int(self.part.rows[index]))

    def _decode(self, index: int) -> Any:
        try:
            return read_rgb(self.part.source.open(int(self.part.rows[index])), self.turned)
        except Exception as error:  # decoders raise many types of exceptions for damaged files
            if self.skipped is None:
                raise UnreadableImage(
                    f"{self.root}/{self._name(index)} cannot be read as an image ({type(error).__name__});"
                    " repair it, or leave such images out: data.unreadable=skip"
                ) from None
            self.skipped[index] = 1
            return None

    def _random(self, image: Any, draws: np.ndarray) -> np.ndarray:
        """A random crop of a PIL image, resized and mirrored with probability 1/2 -> uint8 (size, size, 3)."""
        from PIL.Image import Resampling

        assert self.augmentation is not None
        width, height = image.size
        top, left, rows, columns = self.augmentation.boxes_of(draws, np.array([height]), np.array([width]))[0].tolist()
        box = image.crop((left, top, left + columns, top + rows))
        pixels = np.asarray(box.resize((self.size, self.size), Resampling.BILINEAR))
        return pixels[:, ::-1] if draws[0, 0] < 0.5 else pixels

    def _middle(self, image: Any) -> np.ndarray:
        """The central crop of a PIL image after resizing its short side -> uint8 (size, size, 3)."""
        from torchvision.transforms.v2 import functional as transforms

        image = transforms.resize(image, [resize_side(self.size)])
        return np.asarray(transforms.center_crop(image, [self.size, self.size]))
