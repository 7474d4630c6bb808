"""Training images that loader processes pass on undecoded, with what is needed to decode and crop them on a device."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ORIENTATION = 0x0112  # EXIF's tag
_AS_STORED = 1
_RGB = list(b"RGB")  # the numbers of the components, by which a decoder may tell colours where no marker does


@dataclass
class EncodedImages:
    """A batch of N images: JPEGs as they are stored, and those that a processor had to decode as pixels.

    It has no method `to`, so that loaders which put tensors on a device leave it where it is.
    """

    content: Tensor  # uint8: the bytes of all JPEGs, one behind the other
    ends: np.ndarray  # int64 (N,): where each ends in `content`
    sizes: np.ndarray  # int64 (N, 2): height and width
    boxes: np.ndarray  # int64 (N, 4): the crop's top, left, height and width
    mirrored: np.ndarray  # bool (N,)
    epochs: np.ndarray  # int64 (N,)
    indices: np.ndarray  # int64 (N,): the samples
    decoded: np.ndarray  # int64 (K,): the positions of those without bytes
    pixels: Tensor  # uint8 (K, 3, side, side): what they are

    def __len__(self) -> int:
        return len(self.indices)

    def jpeg(self, position: int) -> Tensor:
        """The bytes of one JPEG, a view."""
        start = int(self.ends[position - 1]) if position else 0
        return self.content[start : int(self.ends[position])]


def jpeg_size(content: bytes, turned: bool) -> tuple[int, int] | None:
    """Height and width of a JPEG that every decoder takes for the same; None for another image.

    Those are whole, grey or in YCbCr and, with `turned`, not turned by their EXIF. Others, such as CMYK or RGB, a
    decoder may take for something else without a word.
    """
    from PIL import Image

    if not content.startswith(b"\xff\xd8") or content.rstrip(b"\0")[-2:] != b"\xff\xd9":
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.format != "JPEG" or image.mode not in ("RGB", "L") or image.info.get("adobe_transform", 1) != 1:
                return None
            if [one[0] for one in getattr(image, "layer", ())] == _RGB:
                return None
            if turned and image.getexif().get(_ORIENTATION, _AS_STORED) != _AS_STORED:
                return None
            return image.height, image.width
    except Exception:  # decoders raise many types of exceptions; the one that is to read it names the file
        return None


def packed(contents: list[bytes]) -> tuple[Tensor, np.ndarray]:
    """All bytes in one tensor, which takes one handle to pass to another process, and where each ends."""
    whole = np.frombuffer(b"".join(contents) or b"\0", dtype=np.uint8)
    return torch.from_numpy(whole.copy()), np.cumsum([len(one) for one in contents], dtype=np.int64)
