"""The dataset that decodes images on request, from folders, parquet shards or tar files."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.errors import Stopped
from pdp.tasks.encoded_images import EncodedImages, jpeg_size, packed
from pdp.tasks.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageDataset, split_keys
from pdp.tasks.image_decoding import read_rgb
from pdp.tasks.image_parts import ImagePart
from pdp.tasks.sampling import Key

_MOST_SHRUNK = 64  # times that a device makes a crop smaller: from 94 on CUDA's antialiasing fails for want of memory


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
        self.encoded = False

    def left_encoded(self) -> FolderImages:
        """The same images, whose batches hold `EncodedImages`; of augmented ones that are cropped at random."""
        dataset = copy.copy(self)
        dataset.encoded = True
        return dataset

    def unreadable(self) -> list[str]:
        """Names, relative to data.root, of the images left out so far."""
        if self.skipped is None:
            return []
        return [self.name(int(i)) for i in np.flatnonzero(self.skipped.numpy())]

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        epochs, indices = split_keys(keys)
        if self.encoded:
            return self._encoded(epochs, indices)
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
            raise UnreadableImage(f"every image of a batch is unreadable, the last {self.name(int(indices[-1]))}")
        epochs, indices = epochs[kept], indices[kept]
        batch = torch.from_numpy(pixels[: len(kept)])
        if self.augmentation is not None and self.augmentation.name == "pad_crop_flip":
            batch = self.augmentation.pad_crop_flip(batch, epochs, indices)
        return self.labelled(batch, indices)

    def _encoded(self, epochs: np.ndarray, indices: np.ndarray) -> dict[str, Any]:
        """A batch whose JPEGs are not decoded; other images are, here."""
        assert self.augmentation is not None
        draws = self.augmentation.draws(epochs, indices)
        kept: list[int] = []
        contents: list[bytes] = []
        decoded: dict[int, Tensor] = {}
        sizes = np.ones((len(indices), 2), dtype=np.int64)
        for position, index in enumerate(indices):
            content, size = self._jpeg(int(index), draws[position : position + 1])
            if size is None:
                made = self.cropped(int(epochs[position]), int(index))
                if made is None:
                    continue
                decoded[len(kept)] = made
            else:
                sizes[position] = size
            contents.append(content)
            kept.append(position)
        if not kept:
            raise UnreadableImage(f"every image of a batch is unreadable, the last {self.name(int(indices[-1]))}")
        epochs, indices, draws, sizes = epochs[kept], indices[kept], draws[kept], sizes[kept]
        boxes = self.augmentation.boxes_of(draws, sizes[:, 0], sizes[:, 1])
        joined, ends = packed(contents)
        mirrored, positions = draws[:, 0] < 0.5, np.array(list(decoded), dtype=np.int64)
        # One tensor, because each takes a handle of its own to another process.
        pixels = torch.stack(list(decoded.values())) if decoded else torch.zeros(0, dtype=torch.uint8)
        images = EncodedImages(joined, ends, sizes, boxes, mirrored, epochs, indices, positions, pixels)
        return {
            "image": images,
            "label": torch.from_numpy(self.labels[indices]),
            "index": torch.from_numpy(indices),
        }

    def _jpeg(self, index: int, draws: np.ndarray) -> tuple[bytes, tuple[int, int] | None]:
        """The bytes and the size of an image that any device may decode and crop, else none."""
        assert self.augmentation is not None
        try:
            content = self.part.source.read(int(self.part.rows[index]))
        except OSError:
            return b"", None
        size = jpeg_size(content, self.turned)
        if size is None:
            return b"", None
        box = self.augmentation.boxes_of(draws, np.array(size[:1]), np.array(size[1:]))[0]
        return (b"", None) if box[2:].max() > _MOST_SHRUNK * self.size else (content, size)

    def cropped(self, epoch: int, index: int) -> Tensor | None:
        """One image decoded here and cropped at random, uint8 (3, size, size); None if it is left out as unreadable."""
        assert self.augmentation is not None
        image = self._decode(index)
        if image is None:
            return None
        pixels = self._random(image, self.augmentation.draws(np.array([epoch]), np.array([index])))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def name(self, index: int) -> str:
        """Where an image is stored, relative to data.root."""
        return self.part.source.name(int(self.part.rows[index]))

    def _decode(self, index: int) -> Any:
        try:
            return read_rgb(self.part.source.open(int(self.part.rows[index])), self.turned)
        except Exception as error:  # decoders raise many types of exceptions for damaged files
            if self.skipped is None:
                raise UnreadableImage(
                    f"{self.root}/{self.name(index)} cannot be read as an image ({type(error).__name__});"
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
