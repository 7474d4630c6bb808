"""Configurations and small data sets for the tests of tasks."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pdp.config.data_schema import ImagesDataConfig
from pdp.config.schema import Config, ModelConfig, RecipeConfig


def configuration(data: dict[str, Any], model: dict[str, Any] | None = None) -> Config:
    """A run of ResNet-20, or of another model, on some data."""
    chosen = {"name": "resnet20", "smallest_input": 8} | (model or {})
    return Config(
        model=ModelConfig(task="images", **chosen), data=ImagesDataConfig(**data), recipe=RecipeConfig(batch_size=32)
    )


def write_folder(root: Path, parts: dict[str, dict[str, int]], side: int = 12, kind: str = "png") -> Path:
    """Writes `parts`, {"train": {"cat": 3}}, as folders of noise images of slightly different shapes."""
    rng = np.random.default_rng(0)
    for part, classes in parts.items():
        for class_name, count in classes.items():
            folder = root / part / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (side + number % 3, side + number % 2, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}.{kind}")
    return root


def write_fashion(root: Path, train: int = 40, test: int = 20) -> Path:
    """Writes idx files as Fashion-MNIST has them."""
    rng = np.random.default_rng(0)
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


def write_cifar(root: Path) -> tuple[dict[str, bytes], np.ndarray]:
    """Writes CIFAR-10's batches, 10 images each; returns contents by name, and the test pixels (10, 3, 32, 32)."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    contents = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        contents[name] = pickle.dumps({"data": pixels, "labels": list(range(10))})
    contents["batches.meta"] = pickle.dumps({"label_names": [str(i) for i in range(10)]})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents, pixels.reshape(10, 3, 32, 32)
