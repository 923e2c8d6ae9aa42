import contextlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coserve_images.decode import decode
from coserve_images.errors import ImageError
from coserve_images.preprocess import preprocess
from coserve_server.ensembles.preprocessing import Preprocessing
from tests.images.hostile_images import png
from tests.images.test_orientation import STORED

LIMIT = 10_000
RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image)


def corners() -> Image.Image:
    """Red top left, green top right, blue below; 4 wide, 2 high."""
    image = Image.new("RGB", (4, 2), BLUE)
    image.paste(RED, (0, 0, 2, 1))
    image.paste(GREEN, (2, 0, 4, 1))
    return image


def how(**changes: object) -> Preprocessing:
    plain = {"height": 4, "width": 4, "resize_size": 4, "interpolation": "bilinear"}
    return Preprocessing(**(plain | {"mean": (0, 0, 0), "std": (1, 1, 1)} | changes))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encode(corners(), kind, **options)), np.asarray(corners()))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_formats_come_close(kind: str) -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(pixels(encode(flat, kind)).astype(int) - [200, 100, 50]).max() <= 4


def test_palette_becomes_its_colours() -> None:
    palette = corners().convert("P", palette=Image.Palette.ADAPTIVE, colors=3)
    np.testing.assert_array_equal(pixels(encode(palette)), np.asarray(corners()))


def test_grey_and_bilevel_become_rgb() -> None:
    assert (pixels(encode(Image.new("L", (2, 2), 77))) == 77).all()
    assert (pixels(encode(Image.new("1", (2, 2), 1))) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    grey = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    np.testing.assert_array_equal(pixels(encode(grey, kind))[0, :, 0], [0, 1, 128, 255])


def test_16_bit_colour_keeps_its_brightness() -> None:
    # Pillow cannot write it. Each row is a byte for "not filtered", then big-endian samples.
    row = b"\0" + np.array([65535, 32896, 0], ">u2").tobytes()
    data = png(1, 1, zlib.compress(row), depth=16)
    np.testing.assert_allclose(pixels(data)[0, 0], [255, 128, 0], atol=1)


def test_cmyk_becomes_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert np.abs(pixels(encode(cyan, "JPEG")).astype(int) - [0, 255, 255]).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    np.testing.assert_array_equal(pixels(encode(image.convert(mode)))[0], [WHITE, BLACK])


def test_half_transparent_red_is_laid_over_white() -> None:
    np.testing.assert_array_equal(
        pixels(encode(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))[0, 0], [255, 127, 127]
    )


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_transparent_palette_entries_are_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLACK, *RED])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encode(image, kind, transparency=0))[0], [WHITE, RED])


def test_transparent_16_bit_grey_is_white() -> None:
    grey = Image.fromarray(np.array([[1000, 65535 // 5]], np.uint16))
    np.testing.assert_array_equal(pixels(encode(grey, transparency=1000))[0, :, 0], [255, 51])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_counts_as_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels(data)[0, 0], GREEN)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    """Store the image as a camera held that way would, and expect an upright image."""
    stored = STORED[orientation](np.asarray(corners()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(corners()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_hide_the_picture() -> None:
    data = encode(Image.new("RGB", (8, 8), WHITE), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff")
    assert pixels(data).min() >= 250


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image in a supported format"),
        (b"hello, world", "not an image in a supported format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image in a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a supported format"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:900], "broken or truncated"),
        (encode(Image.effect_noise((64, 64), 50))[:900], "broken or truncated"),
        (encode(Image.new("F", (2, 2), 1.5), "TIFF"), "floating-point samples"),
        (encode(Image.new("I", (2, 2), 70_000), "TIFF"), "more than 16 bits"),
        (encode(Image.new("1", (101, 100))), "101 x 100 pixels, more than the 10000 allowed"),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data, LIMIT)


def test_a_pixel_bomb_is_refused_from_its_header() -> None:
    # A PNG header of 30,000 x 30,000 pixels with no pixel data: decoding it would fail differently.
    bomb = bytearray(encode(Image.new("1", (1, 1))))
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="pixels"):
        decode(bytes(bomb), LIMIT)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged metadata
@given(st.binary(max_size=40), st.integers(0, 600), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF"]))
@settings(max_examples=150, deadline=None)
def test_damaged_files_give_an_image_or_a_bad_image_error(noise: bytes, at: int, kind: str) -> None:
    data = bytearray(encode(corners().resize((16, 16)), kind))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(ImageError):
        assert decode(bytes(data), LIMIT).mode == "RGB"


def test_pixels_are_normalised_channels_first() -> None:
    image = Image.new("RGB", (4, 4), (255, 51, 0))
    tensor = preprocess(image, how(mean=(0.5, 0.2, 0.1), std=(0.5, 0.1, 0.2)), LIMIT)
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 4, 4)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor[:, 0, 0], [1, 0, -0.5], atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    tensor = preprocess(Image.fromarray(noise), how(interpolation="bicubic"), LIMIT)
    np.testing.assert_allclose(tensor.transpose(1, 2, 0) * 255, noise, atol=1e-4)


def test_the_shorter_side_is_resized_and_the_centre_cut_out() -> None:
    image = Image.new("RGB", (32, 8), RED)
    image.paste(GREEN, (12, 0, 20, 8))
    tensor = preprocess(image, how(), LIMIT)
    np.testing.assert_allclose(tensor[:, 1, 1], [0, 1, 0], atol=0.01)
    np.testing.assert_allclose(tensor[:, 1, 2], [0, 1, 0], atol=0.01)


def test_resize_then_crop_equals_pillows() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 61, 3), np.uint8))
    tensor = preprocess(noise, how(height=5, width=6, resize_size=9, interpolation="bicubic"), LIMIT)
    resized = noise.resize((15, 9), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((4, 2, 10, 7)), np.float32) / 255
    np.testing.assert_allclose(tensor.transpose(1, 2, 0), expected, atol=1e-6)


def test_without_resize_size_proportions_are_given_up() -> None:
    image = Image.new("RGB", (40, 10), RED)
    image.paste(BLUE, (20, 0, 40, 10))
    tensor = preprocess(image, how(height=2, width=2, resize_size=None), LIMIT)
    np.testing.assert_allclose(tensor[:, 0, 0], [1, 0, 0], atol=0.2)
    np.testing.assert_allclose(tensor[:, 0, 1], [0, 0, 1], atol=0.2)


def test_a_thread_of_an_image_is_refused_before_it_is_resized() -> None:
    with pytest.raises(ImageError, match="36000 x 4 pixels"):
        preprocess(Image.new("RGB", (9000, 1)), how(), LIMIT)
