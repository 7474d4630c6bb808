"""Any image file as 8-bit RGB, as viewers show it: sixteen bits and floats scaled, clear parts white, EXIF turns."""

from __future__ import annotations

from typing import IO, Any

import numpy as np

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".avif", ".jp2"),
)


def read_rgb(file: str | IO[bytes], turned: bool) -> Any:
    """A PIL image of mode RGB, of an animation its first; `turned` follows the EXIF orientation.

    Raises many kinds of errors for files that are damaged or of a kind that is not known.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        image.load()
        if turned:
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def check_decodes(file: str | IO[bytes]) -> None:
    """Raises an error where an image is cut off or damaged; of a JPEG an eighth of the size is decoded."""
    from PIL import Image

    with Image.open(file) as image:
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.load()


def to_rgb(image: Any) -> Any:
    """A loaded PIL image of any mode as RGB."""
    from PIL import Image

    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        pixels = np.asarray(image)
        if mode == "I" and getattr(image, "tag_v2", {}).get(339, (1,))[0] == 1:  # PIL knows no unsigned 32 bits of TIFF
            pixels = pixels.view(np.uint32)
        return Image.fromarray(_eight_bits(pixels, sixteen=mode.startswith("I;16"))).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    if mode == "RGB":
        return image  # convert() would copy it
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return image.convert("RGB")


def _eight_bits(pixels: np.ndarray, sixteen: bool) -> np.ndarray:
    """Grey values as uint8, by the range that their kind or they themselves have.

    Sixteen bits go to 65,535. Others are taken to go to 1, 255, 65,535 or 4,294,967,295, the first that they keep
    within (floats may be over 1 by a little); where some are negative, they are stretched from least to most.
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
