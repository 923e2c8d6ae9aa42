"""Sample images to run networks on: a user's own, and synthetic ones."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_export.ensemble import Preprocessing
from coserve_export.errors import DescriptionError
from coserve_export.parity import Images
from coserve_images.decode import open_image
from coserve_images.errors import ImageError
from coserve_images.formats import OWN_FORMATS, OWN_SUFFIXES
from coserve_images.preprocess import resize, shorter_side

MAX_SAMPLES = 32
RANDOM_IMAGES = 4
BLOBS = 4


@dataclass(frozen=True)
class Samples:
    """Images to try a network on.

    Attributes:
        images: normalised images `[N, 3, H, W]`.
        names: what each one is, for error messages.
    """

    images: Images
    names: list[str]


def make_samples(preprocessing: Preprocessing, folder: Path | None) -> Samples:
    """Return varied images: up to 32 of a folder or else random ones, then plain and smooth ones.

    Raises:
        DescriptionError: the folder is missing or has fewer than two images, or one cannot be decoded.
    """
    height = preprocessing.height
    width = preprocessing.width
    if folder is not None:
        images = read_samples(folder, preprocessing)
        name = f"an image of {folder}"
    else:
        images = _random_pixels(height, width)
        name = "random pixels"
    made = _plain_and_smooth(height, width)
    return Samples(
        preprocessing.normalise(np.concatenate([images, np.stack(list(made.values()))])),
        [*[name] * len(images), *made],
    )


def make_images(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return varied images `[N, H, W, 3]`: random, plain and smooth ones."""
    made = _plain_and_smooth(height, width)
    return np.concatenate([_random_pixels(height, width), np.stack(list(made.values()))])


def _random_pixels(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, height, width, 3), dtype=np.uint8)


def _plain_and_smooth(height: int, width: int) -> dict[str, npt.NDArray[np.uint8]]:
    return {
        "a white image": np.full((height, width, 3), 255, np.uint8),
        "a grey gradient": np.broadcast_to(
            np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 3)
        ),
        "blurred colours": _blurred_colours(height, width),
        "a black image": np.zeros((height, width, 3), np.uint8),
    }


def _blurred_colours(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image as smooth as photographs are, which random pixels are not."""
    colours = np.random.default_rng(1).integers(0, 256, (BLOBS, BLOBS, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC))


def read_samples(folder: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Read up to 32 images from a folder and its subfolders, resized to the networks' input.

    Returns:
        Images `[N, H, W, 3]`, uint8.

    Raises:
        DescriptionError: the folder is missing or has fewer than two images, or one cannot be decoded.
    """
    # os.path, unlike pathlib, also answers for names that no folder can have.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise DescriptionError(f"{folder} is not a folder")
    found = (file for file in folder.rglob("*") if file.suffix.lower() in OWN_SUFFIXES and not file.is_dir())
    files = sorted(found)[:MAX_SAMPLES]
    if len(files) < 2:
        raise DescriptionError(f"{folder} has {len(files)} images; at least two are needed")
    return np.stack([_read(file, preprocessing) for file in files])


def _read(file: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    try:
        with file.open("rb") as stream, open_image(stream, formats=OWN_FORMATS) as opened:
            image, box = opened.decode(shorter_side(preprocessing))
        return np.asarray(resize(image, preprocessing, box=box))
    except (OSError, ImageError) as error:
        raise DescriptionError(f"{file} cannot be decoded: {error}") from error
