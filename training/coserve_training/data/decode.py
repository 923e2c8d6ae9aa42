"""Turn opened images into RGB arrays, by the rule in docs/model-repository.md, which serving follows too."""

import math
import warnings
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

EXACT_PIXELS = 50_000_000
"""The gateway's default limit. Larger photographs are decoded at a fraction of their size: 100 megapixels
would take 300 MB in every worker."""

# A random crop's share of the image's area, and its width / height (Inception, arXiv 1409.4842, section 6).
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

# By EXIF orientation (CIPA DC-008, tag 0x0112): the transposition that makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# In a user's own data, 100 megapixels are not an attack. Pillow still refuses images twice as large.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# ImageNet contains photographs with damaged metadata.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)

Pixels = npt.NDArray[np.uint8]


def decode_image(data: bytes, size: int) -> Pixels:
    """Decode an image, resize its shorter side to `size` and cut out the centre.

    Returns:
        `[size, size, 3]` uint8 RGB.

    Raises:
        Exception: of many types, for data that Pillow cannot decode.
    """
    with Image.open(BytesIO(data)) as image:
        return centre(image, size)


def centre(image: Image.Image, size: int) -> Pixels:
    """Resize an opened image's shorter side to `size` and cut out the centre: `[size, size, 3]` RGB.

    Raises:
        ValueError: for an image so long and thin that resizing it would take gigabytes.
    """
    check_shape(image.size, size)
    if image.width * image.height > EXACT_PIXELS:
        _reduce(image, min(image.size) / (2 * size))
    image = to_rgb(upright(image))
    return np.asarray(image if image.size == (size, size) else centre_crop(image, size))


def random_crops(image: Image.Image, size: int, random: np.random.Generator, views: int) -> Pixels:
    """Draw several crops of an opened image, and resize them: `[views, size, size, 3]` RGB.

    A JPEG is decoded once, at the fraction of its size that the smallest crop needs.
    """
    width, height = image.size[::-1] if _orientation(image) >= 5 else image.size
    boxes = np.array([random_box(random, width, height) for _ in range(views)], float)
    _reduce(image, float((boxes[:, 2:] - boxes[:, :2]).min()) / size)
    image = to_rgb(upright(image))
    bounds = np.array([*image.size, *image.size])
    boxes = np.minimum(boxes * bounds / (width, height, width, height), bounds)
    crops = [image.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes.tolist()]
    return np.stack([np.asarray(crop) for crop in crops])


def random_box(random: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Draw a crop of random area, aspect ratio and position: left, top, right and bottom in pixels."""
    for _ in range(10):
        area = width * height * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(width - w + 1))
            top = int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * CROP_RATIO[1])))
    h = max(1, min(height, round(width / CROP_RATIO[0])))
    left = (width - w) // 2
    top = (height - h) // 2
    return left, top, left + w, top + h


def check_shape(shape: tuple[int, int], size: int) -> None:
    """Check that the shorter side of an image of `shape` can be resized to `size`.

    Raises:
        ValueError: for an image so long and thin that it would have more than `EXACT_PIXELS` after it.
    """
    if max(shape) / min(shape) * size**2 > max(EXACT_PIXELS, size**2):
        raise ValueError(f"{shape[0]}×{shape[1]} pixels, too long and thin to resize")


def upright(image: Image.Image) -> Image.Image:
    """Return the decoded image, transposed as its EXIF orientation says."""
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to 8-bit RGB: transparency over white, 16-bit grey scaled to 8 bits.

    Raises:
        ValueError: for samples of more than 16 bits or in floating point, whose brightness is undefined.
    """
    if image.mode == "F":
        raise ValueError("floating-point samples have no defined brightness")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("samples of more than 16 bits")
        scaled = np.rint(grey / 257).astype(np.uint8)
        scaled[grey == image.info.get("transparency", -1)] = 255
        return Image.fromarray(scaled).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (antialiased bilinear) and cut out the central square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left = round((width - size) / 2)
    top = round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG":  # `getexif` would decode its pixels and hide their faults as faults of metadata
        image.load()
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Viewers show photographs with damaged metadata. The parser raises many types of errors.
    except Exception:
        return 1


def _reduce(image: Image.Image, factor: float) -> None:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, by at most `factor`. Leave other formats."""
    if factor >= 2:
        image.draft(None, (math.ceil(image.width / factor), math.ceil(image.height / factor)))
