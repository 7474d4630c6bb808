"""Decodes and crops training images on the device, ahead of the steps that take them (data.decode=gpu)."""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pdp.errors import Refusal, Stopped
from pdp.tasks.encoded_images import EncodedImages
from pdp.tasks.folder_images import FolderImages
from pdp.tasks.image_data import IMAGE_SETS
from pdp.wording import one_line

_AHEAD = 2  # batches that are decoded before the steps need them
_AT_ONCE = 2**28  # bytes of decoded images that a call of the decoder may make
_COMPARED, _LEVELS = 8, 8.0  # images that are also decoded by a processor; how far they may differ, of 255 levels


def check_decoding(data: Any, augmentation: str) -> None:
    """Raises `Refusal` where data.decode=gpu has nothing to decode, or not what it can."""
    if data.decode != "gpu":
        return
    if IMAGE_SETS[data.name].in_memory:
        raise Refusal(f"data.decode=gpu: data={data.name} is not encoded: drop it, or give data=image_folder")
    if augmentation != "random_resized_crop":
        raise Refusal(
            f"data.decode=gpu is of recipe.augmentation=random_resized_crop, and this is {augmentation}: give that, or "
            "data.decode=cpu"
        )


_Decoded = tuple[Tensor, list[int], Any]  # pixels, positions that are left out, the event that ends the work


class DecodedAhead:
    """A loader whose batches hold `EncodedImages`, with their pixels in place of these: uint8 (N, 3, side, side).

    A thread decodes the next batches while a step computes. An image that the device does not decode is decoded by the
    processor. The first images are decoded by both, and `Stopped` is raised where the two are not the same pictures.
    """

    def __init__(self, loader: Any, device: torch.device, images: FolderImages):
        self.loader, self.device, self.images = loader, device, images
        self._able, self._to_compare = False, _COMPARED
        # torchvision announces that it will hand decoding over to another package. The filter is set here, because one
        # for the time of a call would change what other threads are warned of.
        warnings.filterwarnings("ignore", message=".*TorchCodec", module=r"torchvision\.io")
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        waiting: deque[tuple[dict[str, Any], Future[_Decoded]]] = deque()
        with ThreadPoolExecutor(1, "decoding") as pool:
            try:
                for batch in self.loader:
                    waiting.append((batch, pool.submit(self._decoded, batch["image"])))
                    if len(waiting) > _AHEAD:
                        yield self._arrived(*waiting.popleft())
                while waiting:
                    yield self._arrived(*waiting.popleft())
            finally:
                for _, one in waiting:
                    one.cancel()

    def _arrived(self, batch: dict[str, Any], decoded: Future[_Decoded]) -> dict[str, Any]:
        """The batch with its pixels, in the stream that computes and without images that cannot be read."""
        pixels, lost, done = decoded.result()
        if done is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(done)
            pixels.record_stream(computing)
        batch = batch | {"image": pixels}
        if not lost:
            return batch
        kept = torch.from_numpy(np.setdiff1d(np.arange(len(pixels)), lost))
        return {name: values[kept.to(values.device)] for name, values in batch.items()}

    def _decoded(self, encoded: EncodedImages) -> _Decoded:
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            pixels, lost = self._pixels(encoded)
            return pixels, lost, None if self._stream is None else self._stream.record_event()

    def _pixels(self, encoded: EncodedImages) -> tuple[Tensor, list[int]]:
        """The pixels, and the positions of images that cannot be read and are left out."""
        side = self.images.size
        found = torch.zeros((len(encoded), 3, side, side), device=self.device)
        lost, there = [], []
        for chunk in _chunks(encoded):
            for position, image in zip(chunk, self._images(encoded, chunk), strict=True):
                if image is not None and image.shape == (3, *encoded.sizes[position]):
                    found[position] = _cropped(image, encoded.boxes[position], bool(encoded.mirrored[position]), side)
                    there.append(position)
                elif (pixels := self._by_processor(encoded, position)) is not None:
                    found[position] = pixels
                else:
                    lost.append(position)
        if len(encoded.decoded):
            found[torch.from_numpy(encoded.decoded).to(self.device)] = encoded.pixels.to(self.device).float()
        compared = there[: self._to_compare]
        self._to_compare -= len(compared)
        lost += [position for position in compared if not self._compare(encoded, position, found[position])]
        if len(lost) == len(encoded):
            raise Stopped("every image of a batch is unreadable; see data.unreadable")
        return found.round_().clamp_(0, 255).to(torch.uint8), lost

    def _images(self, encoded: EncodedImages, positions: list[int]) -> list[Tensor | None]:
        """The decoded images, uint8 (3, height, width); None where the device cannot."""
        jpegs = [encoded.jpeg(position) for position in positions]
        try:
            found: list[Tensor | None] = list(self._decode(jpegs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._check_able(error)
            if len(jpegs) == 1:
                return [None]
        else:
            self._able = True
            return found
        # One of them spoils the call: that one alone is for the processor.
        return [image for position in positions for image in self._images(encoded, [position])]

    def _decode(self, jpegs: list[Tensor]) -> Iterable[Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        if self._stream is not None:
            # The decoder has a stream of its own, which would write to memory that this one still reads.
            self._stream.synchronize()
        return decode_jpeg(jpegs, ImageReadMode.RGB, self.device)

    def _check_able(self, error: RuntimeError) -> None:
        """Raises `Stopped` if the device decodes nothing; `error` is what it said of images that may be damaged."""
        from PIL import Image

        if self._able:
            return
        plain = io.BytesIO()
        Image.new("RGB", (64, 64), "gray").save(plain, "JPEG")
        try:
            self._decode([torch.frombuffer(bytearray(plain.getvalue()), dtype=torch.uint8)])
        except RuntimeError:
            raise Stopped(
                f"data.decode=gpu: torchvision decodes no image on {self.device} ({one_line(error)[:200]}): give "
                "data.decode=cpu"
            ) from None
        self._able = True

    def _by_processor(self, encoded: EncodedImages, position: int) -> Tensor | None:
        pixels = self.images.cropped(int(encoded.epochs[position]), int(encoded.indices[position]))
        return None if pixels is None else pixels.to(self.device)

    def _compare(self, encoded: EncodedImages, position: int, pixels: Tensor) -> bool:
        """Whether the processor can read the image; raises `Stopped` if it makes another picture of it.

        Decoders round and smooth colours differently. Of a large image the means over an eighth of the side do not see
        that; of one that is not much larger than the eighths, the mean of their differences does not.
        """
        plain = self._by_processor(encoded, position)
        if plain is None:  # it is marked as left out now, and so it is
            return False
        pooled = [functional.adaptive_avg_pool2d(one.float(), 8) for one in (pixels, plain)]
        off = float((pooled[0] - pooled[1]).abs().mean())
        if off > _LEVELS:
            name = self.images.name(int(encoded.indices[position]))
            raise Stopped(
                f"data.decode=gpu: this device makes another picture of {name} than the processor does, {off:.0f} of "
                "255 levels off: give data.decode=cpu"
            )
        return True


def _chunks(encoded: EncodedImages) -> list[list[int]]:
    """The positions of the JPEGs, in groups that take no more memory than `_AT_ONCE` when decoded."""
    chunks: list[list[int]] = []
    room, decoded = 0, set(encoded.decoded.tolist())
    for position in range(len(encoded)):
        if position in decoded:
            continue
        taken = 3 * int(encoded.sizes[position].prod())
        if not chunks or taken > room:
            chunks.append([])
            room = _AT_ONCE
        chunks[-1].append(position)
        room -= taken
    return chunks


def _cropped(image: Tensor, box: np.ndarray, mirrored: bool, side: int) -> Tensor:
    """A crop resized as PIL does, float32 (3, side, side)."""
    top, left, height, width = box.tolist()
    crop = image[:, top : top + height, left : left + width][None].float()
    resized = functional.interpolate(crop, (side, side), mode="bilinear", align_corners=False, antialias=True)[0]
    return resized.flip(-1) if mirrored else resized
