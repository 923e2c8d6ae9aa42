"""A JPEG decoded at a fraction of its size is the same photograph, to a fraction of a pixel."""

import io
import math
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import SPARE, open_image
from coserve_images.orientation import turn_box
from coserve_images.preprocess import resize, shorter_side


@dataclass(frozen=True)
class Target:
    height: int = 32
    width: int = 32
    resize_size: int | None = 32
    interpolation: str = "bilinear"


def photograph(width: int, height: int, orientation: int = 1, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG of soft blobs, which have no detail that a smaller image could not show."""
    blobs = np.random.default_rng(width * height).integers(0, 256, (12, 12, 3), np.uint8)
    image = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", quality=95, exif=exif, **options)
    return file.getvalue()


def fit(data: bytes, target: Target, *, reduced: bool) -> np.ndarray:
    with open_image(data) as opened:
        image, box = opened.decode(shorter_side(target) if reduced else None)
        assert (min(image.size) < min(opened.stored_size)) == reduced
        if reduced:
            pixels = math.prod(image.size)
            # Decoding rounds sides up.
            assert pixels - sum(image.size) < opened.count_pixels(shorter_side(target)) <= pixels
        assert not reduced or min(image.size) >= SPARE * shorter_side(target)
    return np.asarray(resize(image, target, box=box)).astype(float)


def assert_same(data: bytes, target: Target) -> None:
    difference = np.abs(fit(data, target, reduced=True) - fit(data, target, reduced=False))
    assert difference.mean() < 0.5
    assert difference.max() <= 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(513, 393), (393, 513), (519, 519), (1025, 265)])
def test_every_orientation_of_sizes_that_the_fraction_does_not_divide(
    size: tuple[int, int], orientation: int
) -> None:
    assert_same(photograph(*size, orientation), Target())


@pytest.mark.parametrize("size", [(512, 771), (771, 512)])
def test_a_longer_side_that_the_fraction_does_not_divide_changes_no_fraction(size: tuple[int, int]) -> None:
    with open_image(photograph(*size)) as opened:
        assert opened.count_pixels(32) == 512 * 771 // 64
        image, box = opened.decode(32)
    assert sorted(image.size) == [64, 97]
    assert box == (0, 0, size[0] / 8, size[1] / 8)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_every_kind_of_jpeg(mode: str, progressive: bool, subsampling: int) -> None:
    data = photograph(519, 401, mode=mode, progressive=progressive, subsampling=subsampling)
    assert_same(data, Target())


@pytest.mark.parametrize(
    "target",
    [
        Target(interpolation="bicubic"),
        Target(resize_size=None),
        Target(height=24, width=48, resize_size=None),
        Target(height=28, width=30, resize_size=40),
    ],
)
def test_every_way_of_resizing(target: Target) -> None:
    assert_same(photograph(519, 401), target)


def test_a_photograph_that_is_not_twice_too_large_is_decoded_whole() -> None:
    data = photograph(127, 200)
    with open_image(data) as opened:
        image, box = opened.decode(32)
    assert image.size == (127, 200)
    assert box == (0, 0, 127, 200)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (513, 393)).save(file, kind)
    with open_image(file.getvalue()) as opened:
        image, box = opened.decode(32)
    assert image.size == (513, 393)
    assert box == (0, 0, 513, 393)


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}
"""What turns a stored image upright."""


@pytest.mark.parametrize("orientation", TURNS)
def test_a_box_is_turned_as_its_pixels_are(orientation: int) -> None:
    stored = np.zeros((6, 9), bool)
    stored[1:3, 2:7] = True
    upright = TURNS[orientation](stored)
    left, top, right, bottom = turn_box((2, 1, 7, 3), (9, 6), orientation)
    assert upright[int(top) : int(bottom), int(left) : int(right)].sum() == upright.sum() == 10
    assert (right - left) * (bottom - top) == 10
