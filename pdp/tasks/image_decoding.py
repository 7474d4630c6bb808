"""Decodes any image to 8-bit RGB as viewers show it: scales 16 bits and floats, whitens transparency, applies EXIF."""

from __future__ import annotations

from typing import IO, Any

import numpy as np

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".avif", ".jp2"),
)


def read_rgb(file: str | IO[bytes], turned: bool) -> Any:
    """A PIL image of mode RGB, the first frame of an animation; `turned` applies its EXIF orientation.

    Raises various types of exceptions for files that are damaged or of an unknown format.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        _scale_clear_colour(image)
        image.load()
        if turned:
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def _scale_clear_colour(image: Any) -> None:
    """Scales the one colour that a PNG calls clear as loading scales the image's own, which PIL leaves undone.

    PIL loads grey of 2 and 4 bits as 8, and keeps the upper byte of 3 x 16 bits. Must be called before that.
    """
    clear = image.info.get("transparency")
    if image.format != "PNG" or clear is None or not image.tile:
        return
    stored = image.tile[0][3]
    if stored in ("L;2", "L;4"):
        most = 3 if stored == "L;2" else 15
        image.info["transparency"] = (clear & most) * (255 // most)
    elif stored == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def check_decodes(file: str | IO[bytes]) -> None:
    """Raises an exception if an image is truncated or damaged.

    To save time, a JPEG is decoded at an eighth of its size.
    """
    from PIL import Image

    with Image.open(file) as image:
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()


def to_rgb(image: Any) -> Any:
    """A loaded PIL image of any mode as RGB."""
    from PIL import Image

    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        pixels = np.asarray(image)
        if mode == "I" and getattr(image, "tag_v2", {}).get(339, (1,))[0] == 1:  # unsigned 32 bits, which PIL lacks
            pixels = pixels.view(np.uint32)
        grey = _eight_bits(pixels, sixteen=mode.startswith("I;16"))
        if isinstance(clear := image.info.get("transparency"), int):
            grey[pixels == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    if mode == "RGB":
        return image  # convert() would make a copy
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return image.convert("RGB")


def _eight_bits(pixels: np.ndarray, sixteen: bool) -> np.ndarray:
    """Grey values as uint8, scaled by the range of their type or, if the type does not tell, by their own.

    16-bit values are scaled from [0, 65535]. For other types the upper end is the first of 1, 255, 65535 and 4294967295
    that no value exceeds (floats may exceed 1 slightly). If some values are negative, the range from the least to the
    greatest value is stretched to 0..255.
    """
    values = pixels.astype(np.float64)
    if sixteen:
        return np.rint(values / 257).astype(np.uint8)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if least < 0:
        values, top = values - least, most - least
    elif pixels.dtype.kind == "f":
        top = next((top for top in (1.0, 255.0, 65_535.0) if most <= 1.5 * top), most)
    else:
        top = 65_535.0 if most <= 65_535 else 4_294_967_295.0
    return np.rint(np.clip(values / (top or 1.0), 0, 1) * 255).astype(np.uint8)
