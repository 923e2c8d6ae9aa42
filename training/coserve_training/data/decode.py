"""From an opened image to RGB arrays, by the rule in docs/model-repository.md that serving follows too."""

import math
import warnings
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

EXACT_PIXELS = 50_000_000
"""What the gateway accepts by default. A larger photograph is decoded at a fraction of its size: one
of 100 megapixels would take 300 MB in every worker."""

CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Part of the image's area and width / height of a random crop (Inception's, arXiv 1409.4842, section 6)."""

# EXIF orientation (CIPA DC-008, tag 0x0112) to what makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow refuses what is twice as large; a photograph of 100 megapixels is no attack in one's own data.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# ImageNet has photographs with damaged metadata.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)

Pixels = npt.NDArray[np.uint8]


def decode_image(data: bytes, size: int) -> Pixels:
    """Decode, resize the shorter side to `size` and cut out the centre.

    Returns:
        `[size, size, 3]` uint8 RGB.

    Raises:
        Exception: of many kinds, for data that Pillow cannot decode.
    """
    with Image.open(BytesIO(data)) as image:
        return centre(image, size)


def centre(image: Image.Image, size: int) -> Pixels:
    """The central square of an opened image whose shorter side is resized to `size`: `[size, size, 3]` RGB.

    Raises:
        ValueError: for an image so long and thin that resizing it would take gigabytes.
    """
    check_shape(image.size, size)
    if image.width * image.height > EXACT_PIXELS:
        _reduce(image, min(image.size) / (2 * size))
    image = to_rgb(upright(image))
    return np.asarray(image if image.size == (size, size) else centre_crop(image, size))


def random_crops(image: Image.Image, size: int, random: np.random.Generator, views: int) -> Pixels:
    """Several crops of an opened image, each drawn by itself and resized: `[views, size, size, 3]` RGB.

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
    """Left, top, right, bottom of a crop of random area, proportions and place, in pixels."""
    for _ in range(10):
        area = width * height * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * CROP_RATIO[1])))
    h = max(1, min(height, round(width / CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def check_shape(shape: tuple[int, int], size: int) -> None:
    """Check that an image of `shape` can be resized to `size` at its shorter side.

    Raises:
        ValueError: for an image so long and thin that it would then have more than `EXACT_PIXELS`.
    """
    if max(shape) / min(shape) * size**2 > max(EXACT_PIXELS, size**2):
        raise ValueError(f"{shape[0]}×{shape[1]} pixels, too long and thin to resize")


def upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says."""
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a Pillow image: transparency over white, 16-bit grey scaled to 8 bits.

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
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG":  # whose pixels `getexif` decodes: their faults must not pass for metadata's
        image.load()
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A viewer shows a photograph whose metadata is damaged; the parser raises many kinds of error.
    except Exception:
        return 1


def _reduce(image: Image.Image, factor: float) -> None:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, but by no more than `factor`; leave others."""
    if factor >= 2:
        image.draft(None, (math.ceil(image.width / factor), math.ceil(image.height / factor)))
