"""Every orientation in every format and mode is applied once."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from coserve_images.decode import decode, open_image
from tests.images.tiffs import YCBCR

MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "I;16", "LA", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "I;16", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", *["YCbCr"] * YCBCR),
    "AVIF": ("RGB", "RGBA"),
}
CASES = [(kind, mode) for kind, modes in MODES.items() for mode in modes]
STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}
"""How a camera that was held that way stores an upright image."""


def scene() -> np.ndarray:
    """White above left, black elsewhere: no turn or reflection leaves it as it is. 48 wide, 32 high."""
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:16, :16] = 255
    return pixels


def stored(orientation: int, mode: str) -> Image.Image:
    grey = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene())))
    if mode == "I;16":
        return Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode == "P":
        return grey.convert("RGB").quantize(4)
    return grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "LAB") else grey.convert(mode)


def encode(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **{"WEBP": {"lossless": True}}.get(kind, {}))
    return file.getvalue()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_an_image_is_turned_upright_once(kind: str, mode: str, orientation: int) -> None:
    data = encode(stored(orientation, mode), kind, orientation)
    shown = decode(data, 10_000)
    assert shown.size == (48, 32)
    # JPEG and AVIF blur the edges.
    assert np.abs(np.asarray(shown.convert("L")).astype(int) - scene()).mean() < 8
    with open_image(data, 10_000) as opened:
        assert opened.size == (48, 32)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_compressed_tiff_is_turned_once(compression: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored(orientation, "RGB").save(file, "TIFF", compression=compression, exif=exif)
    shown = np.asarray(decode(file.getvalue(), 10_000).convert("L")).astype(int)
    assert np.abs(shown - scene()).mean() < 8


def test_orientation_in_a_tiffs_xmp_too_is_applied_once() -> None:
    file = io.BytesIO()
    xmp = b'<x tiff:Orientation="6"/>'
    stored(6, "RGB").save(file, "TIFF", tiffinfo={0x0112: 6, 700: xmp})
    with open_image(file.getvalue()) as opened:
        assert opened.size == (48, 32)
        np.testing.assert_array_equal(np.asarray(opened.decode().image.convert("L")), scene())


def test_exif_as_text_in_a_png_is_applied() -> None:
    """ImageMagick writes it so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}\n")
    file = io.BytesIO()
    stored(6, "RGB").save(file, "PNG", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(decode(file.getvalue()).convert("L")), scene())


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_ignored(value: int) -> None:
    np.testing.assert_array_equal(
        np.asarray(decode(encode(stored(1, "RGB"), "PNG", value)).convert("L")), scene()
    )
