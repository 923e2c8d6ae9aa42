"""Training, export and serving see the same pixels, whatever an image's format and mode."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coserve_export.ensemble import Preprocessing as ExportPreprocessing
from coserve_export.labelled import LabelledImages
from coserve_export.samples import read_samples
from coserve_images.preprocess import normalise
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.errors import BadImageError
from coserve_server.pipeline.preparation import EncodedImage, _Job, _Processes
from coserve_training.data.files import StoredFile
from coserve_training.data.lazy import LazyImages
from tests.images import profiles
from tests.images.tiffs import YCBCR

SIZE = 24
PLAIN = {
    "height": SIZE, "width": SIZE, "resize_size": SIZE, "interpolation": "bilinear",
    "mean": (0, 0, 0), "std": (1, 1, 1),
}  # fmt: skip
CENTRAL = {
    "height": SIZE, "width": SIZE, "resize_size": 27, "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
}  # fmt: skip
MODES = {
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "GIF": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "WEBP": ("L", "LA", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F", *["YCbCr"] * YCBCR),
    "AVIF": ("L", "LA", "RGB", "RGBA"),
}
SIZES = {"exact": (24, 24), "wide": (101, 67), "tall": (67, 101), "small": (10, 13), "long": (31, 24)}


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "I"):
        grey = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32)
        return Image.fromarray(grey * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def see(data: bytes, folder: Path, how: dict[str, Any]) -> list[np.ndarray]:
    """Return the image's tensor in serving, evaluation, labelled and unlabelled calibration."""
    file = folder / "image.png"
    file.write_bytes(data)
    (folder / "other.png").write_bytes(data)
    served, _ = _Job(EncodedImage(data), 0, Preprocessing(**how), 10**6, 2**62, _Processes()).prepare()
    sources = np.array([StoredFile(str(file))], object)
    images = LazyImages(sources, SIZE, resize_size=how["resize_size"], interpolation=how["interpolation"])
    exported = ExportPreprocessing(**how)
    (labelled,) = LabelledImages(sources, np.zeros(1, np.int64), exported).batches()
    return [
        served,
        normalise(images[0:1], how["mean"], how["std"])[0],
        labelled[0],
        exported.normalise(read_samples(folder, exported))[0],
    ]


def assert_same(data: bytes, folder: Path, how: dict[str, Any] = PLAIN) -> None:
    first, *others = see(data, folder, how)
    assert first.shape == (3, SIZE, SIZE)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in MODES for mode in MODES[kind]])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_format_and_mode(kind: str, mode: str, orientation: int, tmp_path: Path) -> None:
    image = in_mode(photograph(60, 31), mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    assert_same(encode(image, kind, **options), tmp_path)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("how", [PLAIN, CENTRAL], ids=["plain", "central"])
def test_every_shape(kind: str, shape: str, how: dict[str, Any], tmp_path: Path) -> None:
    assert_same(encode(photograph(*SIZES[shape]), kind), tmp_path, how)


@pytest.mark.parametrize(("mode", "profile"), [
    ("RGB", profiles.rgb_profile(profiles.ADOBE_RGB, 2.2)),
    ("RGB", profiles.rgb_profile(profiles.DISPLAY_P3)),
    ("L", profiles.grey_profile(1.8)), ("CMYK", profiles.cmyk_profile()), ("RGB", b"damaged"),
], ids=["Adobe RGB", "Display P3", "grey", "CMYK", "damaged"])  # fmt: skip
def test_every_colour_profile(mode: str, profile: bytes, tmp_path: Path) -> None:
    assert_same(encode(photograph(40, 30).convert(mode), "JPEG", icc_profile=profile), tmp_path)


def test_animations_and_transparent_palettes(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 30), "red")]
    assert_same(encode(photograph(40, 30), "GIF", save_all=True, append_images=frames), tmp_path)
    assert_same(encode(photograph(40, 30).quantize(16), "PNG", transparency=3), tmp_path)


def test_photographs_beyond_50_megapixels(tmp_path: Path) -> None:
    """Both decode them at a fraction of their size."""
    how = Preprocessing(**PLAIN)
    data = encode(photograph(100, 100).resize((8000, 6400)), "JPEG", quality=50)
    served, _ = _Job(EncodedImage(data), 0, how, 60_000_000, 2**62, _Processes()).prepare()
    file = tmp_path / "large.jpg"
    file.write_bytes(data)
    trained = LazyImages(np.array([StoredFile(str(file))], object), SIZE)[0:1][0]
    np.testing.assert_array_equal(np.rint(served * 255).astype(np.uint8).transpose(1, 2, 0), trained)


def test_all_refuse_the_same(tmp_path: Path) -> None:
    data = encode(Image.fromarray(np.full((30, 30), 7, np.float32)), "TIFF")
    file = tmp_path / "float.tif"
    file.write_bytes(data)
    found = LazyImages(np.array([StoredFile(str(file))], object), SIZE).attempt(0)
    assert isinstance(found, str)
    assert "floating-point samples" in found
    with pytest.raises(BadImageError, match="image 0: floating-point samples"):
        _Job(EncodedImage(data), 0, Preprocessing(**PLAIN), 10**6, 2**62, _Processes()).prepare()
