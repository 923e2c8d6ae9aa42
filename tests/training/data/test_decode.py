"""Decoding and cropping a single photograph."""

import io

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import OpenedImage, open_image
from coserve_images.errors import ImageError
from coserve_training.data.decode import Square, centre, random_box, random_crops
from tests.training.data.photographs import photograph


@pytest.mark.parametrize("share", [(0.08, 1.0), (0.1, 1.0)])
def test_crops_have_the_area_and_proportions_of_inception(share: tuple[float, float]) -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(random, 640, 480, share) for _ in range(4000)])
    widths = boxes[:, 2] - boxes[:, 0]
    heights = boxes[:, 3] - boxes[:, 1]
    areas = widths * heights / (640 * 480)
    ratios = widths / heights
    assert (boxes >= 0).all()
    assert (boxes <= (640, 480, 640, 480)).all()
    assert areas.min() == pytest.approx(share[0], rel=0.1)
    assert 0.9 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76
    assert 1.31 < ratios.max() < 1.35
    # Left is as likely as right and, in crops small enough for both, wide as likely as tall.
    assert abs((boxes[:, 0] + boxes[:, 2]).mean() / 2 - 320) < 6
    assert abs(np.log(ratios[areas < 0.5]).mean()) < 0.02


@pytest.mark.parametrize(("shape", "box"), [((1, 1), (0, 0, 1, 1)), ((1000, 10), (493, 0, 506, 10))])
def test_a_shape_that_no_crop_fits_gives_its_middle(
    shape: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    random = np.random.default_rng(0)
    assert [random_box(random, *shape) for _ in range(20)] == [box] * 20


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("side", [120, 1600])
def test_a_reduced_jpeg_gives_the_crops_of_the_whole(side: int, orientation: int) -> None:
    """Large photographs are decoded at a fraction of their size, and cropped upright."""
    image = photograph(1, side, side * 3 // 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose({
        1: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270,
    }[orientation]) if orientation > 1 else image  # fmt: skip
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    with Image.open(file) as opened:
        crops = random_crops(OpenedImage(opened), 64, np.random.default_rng(5), 4)
        reduced = opened.size != stored.size
    assert reduced == (side == 1600)
    random = np.random.default_rng(5)
    boxes = [random_box(random, *image.size) for _ in range(4)]
    whole = [image.resize((64, 64), Image.Resampling.BILINEAR, box=box) for box in boxes]
    difference = np.abs(crops.astype(int) - np.stack([np.asarray(crop) for crop in whole]))
    assert difference.mean() < 2


def test_a_crop_is_never_enlarged_for_want_of_decoded_pixels() -> None:
    file = io.BytesIO()
    photograph(2, 2000, 1500).save(file, "JPEG")
    for seed in range(20):
        with Image.open(file) as opened:
            random_crops(OpenedImage(opened), 224, np.random.default_rng(seed), 2)
            scale = opened.width / 2000
        random = np.random.default_rng(seed)
        boxes = np.array([random_box(random, 2000, 1500) for _ in range(2)])
        assert ((boxes[:, 2:] - boxes[:, :2]) * scale >= 224 - 1).all()


def test_damaged_metadata_does_not_spoil_a_photograph() -> None:
    file = io.BytesIO()
    image = photograph(3, 64, 64)
    image.save(
        file, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\xff\xff" + b"\xff" * 8
    )
    with open_image(file) as opened:
        pixels = centre(opened, Square(64, 64, "bilinear"))
    with Image.open(file) as expected:
        assert (pixels == np.asarray(expected)).all()


@pytest.mark.parametrize("crops", [False, True])
def test_a_png_whose_pixels_are_damaged_is_refused(crops: bool) -> None:
    file = io.BytesIO()
    photograph(3, 64, 64).save(file, "PNG")
    damaged = bytearray(file.getvalue())
    middle = len(damaged) // 2
    damaged[middle : middle + 50] = bytes(byte ^ 0xFF for byte in damaged[middle : middle + 50])
    square = Square(32, 32, "bilinear")
    with open_image(bytes(damaged)) as opened, pytest.raises(ImageError, match="broken data stream"):
        random_crops(opened, 32, np.random.default_rng(0), 2) if crops else centre(opened, square)
