"""Folders of artificial JPEGs with the file size and decoding cost of ImageNet's, to measure without photographs."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

SIDES = (500, 375)  # pixels, the long side first: the most frequent size in ImageNet
_QUALITY = 90
_VERSION = 1


def make_image_folder(root: Path, train: int, classes: int = 10, sides: tuple[int, int] = SIDES) -> Path:
    """Writes `root`/train and `root`/val as folders of `classes` classes, with one val image each; returns `root`.

    If the folder exists already, it is kept. The images are noise with the amplitude spectrum of photographs, 1/f; two
    of three are wider than high. At quality 90 an image of 500 x 375 takes about 115 kB; the mean in ImageNet is 110
    kB.
    """
    asked = {"version": _VERSION, "train": train, "classes": classes, "sides": list(sides)}
    note = root / "made.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == asked:
        return root
    rng = np.random.default_rng(0)
    field = _field(rng, 3 * max(sides), 2 * max(sides))
    for part, count in (("train", train), ("val", classes)):
        boxes = {}
        for number in range(count):
            folder = root / part / f"class{number % classes:03}"
            folder.mkdir(parents=True, exist_ok=True)
            wide = rng.random() < 2 / 3
            width, height = sides if wide else sides[::-1]
            left, top = rng.integers(0, field.width - width), rng.integers(0, field.height - height)
            boxes[folder / f"{number:06}.jpg"] = (left, top, left + width, top + height)

        def write(path: Path, boxes: dict[Path, Any] = boxes) -> None:
            field.crop(boxes[path]).save(path, quality=_QUALITY)

        with ThreadPoolExecutor(os.cpu_count()) as threads:  # the encoder releases Python's global lock
            list(track(threads.map(write, boxes), f"images for {part}", total=count, disable=count < 200))
    note.write_text(json.dumps(asked), encoding="utf-8")
    return root


def _field(rng: np.random.Generator, width: int, height: int) -> Any:
    """A large image of 1/f noise with strongly correlated channels, from which many images are cropped."""
    from PIL import Image

    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    noise = np.fft.rfft2(rng.standard_normal((4, height, width), dtype=np.float32))
    smooth = np.fft.irfft2(noise / np.maximum(frequency, 1 / SIDES[0]), s=(height, width))
    smooth /= smooth.std(axis=(1, 2), keepdims=True)
    pixels = 115 + 55 * (smooth[0][..., None] + 0.25 * np.moveaxis(smooth[1:], 0, -1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
