"""Reading sample images to run networks on."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from coserve_export.ensemble import Preprocessing
from coserve_export.errors import DescriptionError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
MAX_SAMPLES = 32


def read_samples(folder: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Read up to 32 images from a folder and its subfolders, resized to the networks' input.

    Returns:
        Images `[N, H, W, 3]`, uint8.

    Raises:
        DescriptionError: the folder has fewer than two images, or an image cannot be decoded.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)[:MAX_SAMPLES]
    if len(files) < 2:
        raise DescriptionError(f"{folder} has {len(files)} images; at least two are needed")
    return np.stack([_read(file, preprocessing) for file in files])


def _read(file: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DescriptionError(f"{file} cannot be decoded: {error}") from error
    return np.asarray(resize(image, preprocessing))


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize an RGB image to the networks' input as the server does (docs/model-repository.md)."""
    height = preprocessing.height
    width = preprocessing.width
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    if image.size == (width, height):
        return image
    if preprocessing.resize_size is None:
        return image.resize((width, height), resampling)
    scale = preprocessing.resize_size / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), resampling)
    left = round((resized.width - width) / 2)
    top = round((resized.height - height) / 2)
    return resized.crop((left, top, left + width, top + height))
