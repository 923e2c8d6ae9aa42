"""Training and serving decode images with separate code, to the same pixels."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from coserve_images.decode import decode
from coserve_images.preprocess import preprocess
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.errors import BadImageError
from coserve_training.data.decode import decode_image

SIZE = 24
PLAIN = Preprocessing(
    height=SIZE, width=SIZE, resize_size=SIZE, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
)


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def rotated() -> tuple[Image.Image, dict[str, object]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photograph(60, 31), {"exif": exif}


def transparent() -> Image.Image:
    image = photograph(50, 40).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def grey16() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))


CASES: dict[str, Callable[[], tuple[Image.Image, str, dict[str, object]]]] = {
    "exact size": lambda: (photograph(SIZE, SIZE), "PNG", {}),
    "wide JPEG": lambda: (photograph(101, 67), "JPEG", {}),
    "tall JPEG": lambda: (photograph(67, 101), "JPEG", {}),
    "smaller than the network's input": lambda: (photograph(10, 13), "PNG", {}),
    "long side alone differs": lambda: (photograph(SIZE + 7, SIZE), "PNG", {}),
    "EXIF": lambda: (rotated()[0], "JPEG", rotated()[1]),
    "transparency": lambda: (transparent(), "PNG", {}),
    "palette": lambda: (photograph(40, 30).quantize(16), "PNG", {}),
    "transparent palette": lambda: (photograph(40, 30).quantize(16), "PNG", {"transparency": 3}),
    "CMYK": lambda: (photograph(40, 30).convert("CMYK"), "JPEG", {}),
    "grey": lambda: (photograph(40, 30).convert("L"), "PNG", {}),
    "16-bit grey": lambda: (grey16(), "PNG", {}),
    "animation": lambda: (
        photograph(40, 30), "GIF", {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "red")]},
    ),
}  # fmt: skip


def encode(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("case", CASES)
def test_training_and_serving_see_the_same_pixels(case: str) -> None:
    data = encode(*CASES[case]())
    trained = decode_image(data, SIZE).transpose(2, 0, 1)
    served = preprocess(decode(data, 10**6), PLAIN, 10**6)
    assert np.array_equal(np.rint(served * 255).astype(np.uint8), trained)


def test_both_refuse_floating_point_samples() -> None:
    data = encode(Image.fromarray(np.zeros((30, 30), np.float32)), "TIFF", {})
    with pytest.raises(ValueError, match="floating-point"):
        decode_image(data, SIZE)
    with pytest.raises(BadImageError, match="floating-point"):
        decode(data, 10**6)
