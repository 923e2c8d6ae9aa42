"""Grey of any depth and polarity, and transparency that is a colour."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import decode
from coserve_images.errors import ImageError
from tests.images.hostile_images import chunk, png
from tests.images.tiffs import YCBCR, grey_tiff, tiff

LIMIT = 10_000
STEPS = np.linspace(0, 1, 64).reshape(8, 8)
"""A ramp from black to white."""
EXPECTED = np.rint(STEPS * 255).astype(int)
PILLOW_OPENS = [
    (1, False, "<"), (1, True, "<"), (1, False, ">"), (1, True, ">"),
    (2, False, "<"), (2, True, "<"), (2, False, ">"), (2, True, ">"),
    (4, False, "<"), (4, True, "<"), (4, False, ">"), (4, True, ">"),
    (8, False, "<"), (8, True, "<"), (8, False, ">"), (8, True, ">"),
    (12, False, "<"), (16, False, "<"), (16, True, "<"), (16, False, ">"), (32, False, "<"),
]  # fmt: skip


def ramp(bits: int) -> np.ndarray:
    return np.rint(STEPS * (2**bits - 1)).astype(np.int64)


@pytest.mark.parametrize(("bits", "white_is_zero", "order"), PILLOW_OPENS)
def test_a_ramp_of_any_depth_goes_from_black_to_white(bits: int, white_is_zero: bool, order: str) -> None:
    samples = ramp(bits)
    stored = 2**bits - 1 - samples if white_is_zero else samples
    data = grey_tiff(stored, bits, white_is_zero=white_is_zero, order=order)
    shown = np.asarray(decode(data, LIMIT)).astype(int)
    expected = np.rint(samples * 255 / (2**bits - 1))
    # 32 bits are cut to 16 before they are rounded.
    assert np.abs(shown - expected[..., None]).max() <= (bits == 32)


@pytest.mark.parametrize(
    ("bits", "white_is_zero", "order"), [(12, True, "<"), (16, True, ">"), (32, False, ">")]
)
def test_what_pillow_cannot_read_is_refused(bits: int, white_is_zero: bool, order: str) -> None:
    with pytest.raises(ImageError, match="a kind of TIFF that is not supported"):
        decode(grey_tiff(ramp(bits), bits, white_is_zero=white_is_zero, order=order), LIMIT)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_counts_from_0_to_1(white_is_zero: bool, order: str) -> None:
    stored = (1 - STEPS if white_is_zero else STEPS).astype(np.float32)
    data = grey_tiff(stored, 32, white_is_zero=white_is_zero, sample_format=3, order=order)
    assert np.abs(np.asarray(decode(data, LIMIT))[..., 0].astype(int) - EXPECTED).max() <= 1


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_other_floating_point_is_refused(value: float) -> None:
    samples = STEPS.astype(np.float32)
    samples[3, 3] = value
    with pytest.raises(ImageError, match="floating-point samples have no defined brightness"):
        decode(grey_tiff(samples, 32, sample_format=3), LIMIT)


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_samples_are_refused(bits: int) -> None:
    with pytest.raises(ImageError, match="signed samples"):
        decode(grey_tiff(ramp(bits - 1), bits, sample_format=2), LIMIT)


def test_pillows_32_bit_mode_holds_16_bits() -> None:
    data = encoded_integers(ramp(16))
    np.testing.assert_array_equal(np.asarray(decode(data, LIMIT))[..., 0], EXPECTED)


def encoded_integers(samples: np.ndarray) -> bytes:
    return grey_tiff(samples, 32, sample_format=2)


@pytest.mark.parametrize("value", [-1, 2**16])
def test_other_signed_samples_are_refused(value: int) -> None:
    samples = ramp(16)
    samples[0, 0] = value
    with pytest.raises(ImageError, match="more than 16 bits"):
        decode(encoded_integers(samples), LIMIT)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_of_any_depth_goes_from_black_to_white(bits: int) -> None:
    samples = ramp(bits)
    np.testing.assert_array_equal(
        np.asarray(decode(grey_png(samples, bits), LIMIT))[..., 0], np.rint(samples * 255 / (2**bits - 1))
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_at_any_depth(bits: int) -> None:
    """The second darkest grey is transparent, or black if there are only two greys."""
    samples = ramp(bits)
    key = int(np.unique(samples)[int(bits > 1)])
    shown = np.asarray(decode(grey_png(samples, bits, key), LIMIT))[..., 0]
    expected = np.where(samples == key, 255, np.rint(samples * 255 / (2**bits - 1)))
    np.testing.assert_array_equal(shown, expected)


def grey_png(samples: np.ndarray, bits: int, key: int | None = None) -> bytes:
    rows = np.stack([samples >> bit & 1 for bit in reversed(range(bits))], -1).reshape(len(samples), -1)
    packed = np.packbits(rows.astype(np.uint8), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    extra = [] if key is None else [chunk(b"tRNS", key.to_bytes(2, "big"))]
    return png(8, 8, pixels, *extra, depth=bits, colour=0)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white_at_any_depth(depth: int) -> None:
    colours = np.array([[10, 20, 30], [200, 100, 50]]) * (256 if depth == 16 else 1)
    colours += 7 * (depth == 16)
    row = colours.astype(">u2" if depth == 16 else "u1").tobytes()
    key = chunk(b"tRNS", colours[0].astype(">u2").tobytes())
    data = png(2, 1, zlib.compress(b"\0" + row), key, depth=depth, colour=2)
    np.testing.assert_array_equal(np.asarray(decode(data, LIMIT))[0], [[255] * 3, [200, 100, 50]])


@pytest.mark.parametrize(("mode", "pixel", "shown"), [
    ("LA", (100, 255), (100, 100, 100)),
    ("LA", (100, 0), (255, 255, 255)),
    ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
    ("RGBA", (200, 100, 50, 0), (255, 255, 255)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    *[("YCbCr", (128, 128, 128), (128, 128, 128))] * YCBCR,
    ("LAB", (255, 128, 128), (255, 255, 255)),
])  # fmt: skip
def test_tiffs_of_any_colour_space(mode: str, pixel: tuple[int, ...], shown: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4))
    image.putdata([pixel] * 16)
    file = io.BytesIO()
    image.save(file, "TIFF")
    data = file.getvalue()
    assert np.abs(np.asarray(decode(data, LIMIT))[0, 0].astype(int) - shown).max() <= 1


@pytest.mark.parametrize(("alpha", "shown"), [(128, 255 - 128 + 100), (255, 100), (0, 255)])
def test_premultiplied_alpha_is_undone(alpha: int, shown: int) -> None:
    """Samples of 100 at that alpha: over white, 255 - alpha is added."""
    value = min(100, alpha)
    tags = {
        256: ("I", [2]), 257: ("I", [2]), 258: ("H", [8] * 4), 259: ("H", [1]), 262: ("H", [2]),
        277: ("H", [4]), 278: ("I", [2]), 338: ("H", [1]),
    }  # fmt: skip
    data = tiff(tags, bytes([value, value, value, alpha] * 4))
    assert np.abs(np.asarray(decode(data, LIMIT))[0, 0].astype(int) - shown).max() <= 1
