"""Every kind of image file as viewers show it, and damaged ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pdp.tasks.image_decoding import check_decodes, read_rgb


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(values, bits, *, clear=None, palette=None, alphas=None):
    """A PNG of so many bits a channel, written by hand: (H, W), or (H, W, C) with 2 (grey and alpha), 3 or 4 channels.

    `clear` is the colour that is clear, `alphas` the alpha of each colour of a `palette` (n, 3).
    """
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values[0, 0].size] if palette is None else 3

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def row_of(row):
        single = (row.reshape(-1, 1).astype(int) >> np.arange(bits)[::-1]) & 1
        return b"\0" + np.packbits(single.reshape(-1).astype(np.uint8)).tobytes()

    parts = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0))]
    if palette is not None:
        parts.append((b"PLTE", np.asarray(palette, np.uint8).tobytes()))
    if clear is not None or alphas is not None:
        parts.append(
            (
                b"tRNS",
                np.asarray(alphas, np.uint8).tobytes()
                if alphas is not None
                else np.atleast_1d(clear).astype(">u2").tobytes(),
            )
        )
    parts += [(b"IDAT", zlib.compress(b"".join(map(row_of, values)))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in parts)


RAMP = np.linspace(0, 1, 12)[None].repeat(8, 0)
SIXTEEN = np.rint(RAMP * 65535).astype(np.uint16)
EIGHT = Image.fromarray(np.rint(RAMP * 255).astype(np.uint8))
PALETTE = Image.fromarray((np.arange(96).reshape(8, 12) % 12).astype(np.uint8), mode="P")
PALETTE.putpalette([channel for value in np.rint(np.linspace(0, 255, 12)).astype(int) for channel in (value,) * 3])
KINDS = {
    "png of 16 bits": png(SIXTEEN, 16),
    "png of 3 x 16 bits": png(np.stack([SIXTEEN] * 3, -1), 16),
    "tiff of 16 bits": saved(Image.fromarray(SIXTEEN), "TIFF"),
    "pgm of 16 bits": b"P5\n12 8\n65535\n" + SIXTEEN.astype(">u2").tobytes(),
    "tiff of 32 bits": saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"),
    "floats to 1": saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "floats to 255": saved(Image.fromarray((255 * RAMP).astype(np.float32)), "TIFF"),
    "floats from -1": saved(Image.fromarray((2 * RAMP - 1).astype(np.float32)), "TIFF"),
    "cmyk tiff": saved(EIGHT.convert("RGB").convert("CMYK"), "TIFF"),
    "cmyk jpeg": saved(EIGHT.convert("RGB").convert("CMYK"), "JPEG", quality=100),
    "palette": saved(PALETTE, "PNG"),
    "grey and alpha": saved(EIGHT.convert("LA"), "PNG"),
    "animated gif": saved(EIGHT, "GIF", save_all=True, append_images=[Image.new("L", (12, 8))]),
    "animated webp": saved(EIGHT.convert("RGB"), "WEBP", save_all=True, append_images=[Image.new("RGB", (12, 8))], lossless=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_ramp_is_the_same_ramp_in_every_kind_of_file(kind):
    image = read_rgb(io.BytesIO(KINDS[kind]), turned=True)
    assert image.mode == "RGB" and image.size == (12, 8)
    assert np.abs(np.asarray(image).astype(float) - 255 * RAMP[..., None]).max() <= 1
    check_decodes(io.BytesIO(KINDS[kind]))


def test_clear_is_white_one_bit_is_black_and_white_and_exif_turns():
    red = Image.new("P", (4, 4), 1)
    red.putpalette([0, 0, 0, 255, 0, 0])
    clear = [
        saved(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"),
        saved(PALETTE, "PNG", transparency=bytes(12)),
        saved(red, "PNG", transparency=1),
    ]
    for content in clear:
        assert (np.asarray(read_rgb(io.BytesIO(content), turned=True)) == 255).all()
    bits = np.asarray(read_rgb(io.BytesIO(saved(Image.fromarray(RAMP > 0.5).convert("1"), "PNG")), turned=True))
    assert set(np.unique(bits)) == {0, 255} and (bits[..., 0] == 255 * (RAMP > 0.5)).all()
    turn = Image.Exif()
    turn[0x0112] = 6
    content = saved(EIGHT.convert("RGB"), "JPEG", exif=turn, quality=100)
    turned = np.asarray(read_rgb(io.BytesIO(content), turned=True))
    assert np.abs(turned[:, :, 0].astype(float) - 255 * RAMP.T).max() < 8
    assert read_rgb(io.BytesIO(content), turned=False).size == (12, 8)  # as models of ImageNet were trained


@pytest.mark.parametrize(("bits", "colours"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_clear_colour_of_a_png_of_any_bits_is_white(bits, colours):
    top, rng = 2**bits - 1, np.random.default_rng(bits)
    values = rng.integers(0, top + 1, (9, 13) if colours == 1 else (9, 13, 3))
    plain = np.broadcast_to(255 * values.reshape(9, 13, -1) / top, (9, 13, 3))
    for key in {0, 1, top, 0x12FA % (top + 1)}:
        here = rng.random((9, 13)) < 0.2
        shown = np.where(here.reshape(here.shape + (1,) * (values.ndim - 2)), key, values)
        wanted = np.where((shown == key).reshape(9, 13, -1).all(-1)[..., None], 255, plain)
        content = png(shown, bits, clear=[key] * colours)
        assert np.abs(np.asarray(read_rgb(io.BytesIO(content), turned=True)) - wanted).max() <= 1, key


def test_partly_clear_lets_white_through_in_every_kind_of_png():
    grey, part = np.rint(RAMP * 255), np.linspace(0, 1, 8)[:, None].repeat(12, 1)
    wanted = (part * grey + (1 - part) * 255)[..., None]
    both = {bits: np.stack([RAMP, part], -1) * (2**bits - 1) for bits in (8, 16)}
    index = np.arange(96).reshape(8, 12) % 12
    alphas = np.linspace(0, 255, 12).astype(int)
    shades = np.asarray(PALETTE.getpalette()[:36]).reshape(12, 3)
    shown = (shades[index] * alphas[index][..., None] + 255 * (255 - alphas[index][..., None])) / 255
    kinds = [
        *((png(np.rint(one), bits), wanted) for bits, one in both.items()),
        *((png(np.rint(one[..., [0, 0, 0, 1]]), bits), wanted) for bits, one in both.items()),
        *((png(index, bits, palette=shades, alphas=alphas), shown) for bits in (4, 8)),
        (png(index % 4, 2, palette=shades[:4], alphas=[255, 0]), np.where(index[..., None] % 4 == 1, 255, shades[index % 4])),
        (png(index % 2, 1, palette=shades[:2], alphas=[0]), np.where(index[..., None] % 2 == 0, 255, shades[index % 2])),
    ]  # fmt: skip
    for place, (content, expected) in enumerate(kinds):
        assert np.abs(np.asarray(read_rgb(io.BytesIO(content), turned=True)) - expected).max() <= 1.5, place


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
def test_what_is_cut_off_is_found_before_training(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = saved(Image.fromarray(pixels), kind)
    check_decodes(io.BytesIO(content))
    for share in (0.5, 0.9):
        with pytest.raises(Exception):  # noqa: B017, PT011  PIL raises many kinds
            check_decodes(io.BytesIO(content[: int(share * len(content))]))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 7)])
def test_images_of_few_pixels_are_no_damaged_ones(size):
    check_decodes(io.BytesIO(saved(Image.new("RGB", size), "JPEG")))
