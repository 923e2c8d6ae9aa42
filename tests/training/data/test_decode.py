"""Decoding a single photograph."""

import io

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import open_image
from coserve_images.errors import ImageError
from coserve_training.data.decode import Square, make_square
from coserve_training.views.crop import crop_photograph
from tests.training.data.photographs import photograph

SQUARE = Square(64, 64, "bilinear")
CUBIC = Image.Resampling.BICUBIC


def test_damaged_metadata_does_not_spoil_a_photograph() -> None:
    file = io.BytesIO()
    image = photograph(3, 64, 64)
    image.save(
        file, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\xff\xff" + b"\xff" * 8
    )
    with open_image(file) as opened:
        pixels = np.asarray(make_square(opened, SQUARE))
    with Image.open(file) as expected:
        assert (pixels == np.asarray(expected)).all()


@pytest.mark.parametrize("crop", [False, True])
def test_a_png_whose_pixels_are_damaged_is_refused(crop: bool) -> None:
    file = io.BytesIO()
    photograph(3, 64, 64).save(file, "PNG")
    damaged = bytearray(file.getvalue())
    middle = len(damaged) // 2
    damaged[middle : middle + 50] = bytes(byte ^ 0xFF for byte in damaged[middle : middle + 50])
    random = [np.random.default_rng(0)]
    with open_image(bytes(damaged)) as opened, pytest.raises(ImageError, match="broken data stream"):
        crop_photograph(opened, 32, (0.1, 1), CUBIC, random) if crop else make_square(opened, SQUARE)
