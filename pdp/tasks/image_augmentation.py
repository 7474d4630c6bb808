"""Augmentation whose random draws depend only on (seed, epoch, sample index); the global RNG is never used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pdp.errors import Refusal
from pdp.tasks.sampling import uniforms

AUGMENTATIONS = ("none", "pad_crop_flip", "random_resized_crop")
_PAD = 4
_ATTEMPTS = 10  # attempts to find a crop box that fits in the image, as in torchvision's RandomResizedCrop


def check_augmentation(name: str) -> None:
    """Raises `Refusal` for an unknown augmentation."""
    if name not in AUGMENTATIONS:
        raise Refusal(f"recipe.augmentation={name} is unknown; it can be {', '.join(AUGMENTATIONS)}")


@dataclass(frozen=True)
class Augmentation:
    """One of `AUGMENTATIONS` with a seed."""

    name: str
    seed: int

    def flips(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Which samples are mirrored left to right, bool (samples,)."""
        return uniforms(self.seed, epochs, indices, 1)[:, 0] < 0.5

    def boxes(self, epochs: np.ndarray, indices: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Crop boxes, int64 (samples, 4): top, left, height, width; 8 to 100 % of the area, aspect ratio 3/4 to 4/3."""
        return self.boxes_of(self.draws(epochs, indices), heights, widths)

    def draws(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The draws that `boxes_of` needs, float64 (samples, draws); `flips` tests whether the first is below 1/2."""
        return uniforms(self.seed, epochs, indices, 3 + 2 * _ATTEMPTS)

    @staticmethod
    def boxes_of(draws: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """`boxes` from draws made for the whole batch, while the sizes of its images become known one by one."""
        draws = draws[:, 1:]
        areas = (heights * widths)[:, None] * (0.08 + 0.92 * draws[:, 2::2])
        ratios = np.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[:, 3::2])
        crop_w = np.round(np.sqrt(areas * ratios)).astype(np.int64)
        crop_h = np.round(np.sqrt(areas / ratios)).astype(np.int64)
        fits = (crop_w > 0) & (crop_h > 0) & (crop_w <= widths[:, None]) & (crop_h <= heights[:, None])
        first, rows = np.argmax(fits, axis=1), np.arange(len(draws))
        found = fits.any(axis=1)
        # If no attempt fits, the box is the centre of the image, at the nearest allowed aspect ratio.
        middle_w = np.minimum(widths, np.round(heights * 4 / 3).astype(np.int64))
        middle_h = np.minimum(heights, np.round(widths * 4 / 3).astype(np.int64))
        height = np.where(found, crop_h[rows, first], middle_h)
        width = np.where(found, crop_w[rows, first], middle_w)
        top = np.where(found, np.floor(draws[:, 0] * (heights - height + 1)), (heights - height) // 2)
        left = np.where(found, np.floor(draws[:, 1] * (widths - width + 1)), (widths - width) // 2)
        return np.stack([top, left, height, width], axis=1).astype(np.int64)

    def pad_crop_flip(self, images: Tensor, epochs: np.ndarray, indices: np.ndarray) -> Tensor:
        """(N, C, H, W): padded by 4 black pixels, cropped to (H, W) at random, mirrored with probability 1/2."""
        draws = uniforms(self.seed, epochs, indices, 3)
        shifts = np.floor(draws[:, 1:] * (2 * _PAD + 1)).astype(np.int64)
        height, width = images.shape[-2:]
        rows = shifts[:, :1] + np.arange(height)
        columns = shifts[:, 1:] + np.arange(width)
        columns = np.where(draws[:, :1] < 0.5, columns[:, ::-1], columns)
        padded = functional.pad(images, (_PAD, _PAD, _PAD, _PAD))
        samples = torch.arange(len(images))[:, None, None]
        # With index arrays on both sides of a slice, PyTorch puts the slice's dimension last: (N, H, W, C).
        cropped = padded[samples, :, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]]
        return cropped.permute(0, 3, 1, 2).contiguous()

    def resized_crop(self, images: Tensor, epochs: np.ndarray, indices: np.ndarray) -> Tensor:
        """(N, C, H, W): a random crop of each image, resized to (H, W), mirrored with probability 1/2."""
        from torchvision.transforms.v2 import functional as transforms

        height, width = images.shape[-2:]
        size = [height, width]
        boxes = self.boxes(epochs, indices, np.full(len(images), height), np.full(len(images), width)).tolist()
        crops = [
            transforms.resized_crop(image, *box, size=size, antialias=True)
            for image, box in zip(images, boxes, strict=True)
        ]
        mirrored = torch.from_numpy(self.flips(epochs, indices))[:, None, None, None]
        stacked = torch.stack(crops) if crops else images
        return torch.where(mirrored, stacked.flip(-1), stacked)
