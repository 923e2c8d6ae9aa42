"""Reduce samples of any depth to 8 bits."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from coserve_images.errors import ImageError

# Tags of TIFF 6.0, and some of their values.
BITS_PER_SAMPLE = 258
PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
SAMPLE_FORMAT = 339
UNSIGNED = 1
SIGNED = 2


def reduce_depth(image: Image.Image) -> Image.Image:
    """Scale the samples of a decoded grey image to 8 bits if they have more; Pillow does so for colours.

    Raises:
        ImageError: floating-point samples that are not between 0 and 1, or signed ones outside of 16 bits,
            whose brightness is not defined.
    """
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if image.mode == "F":
        return _scale_floats(np.asarray(image), white_is_zero)
    if image.mode.startswith("I"):
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        unsigned = tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
        return _scale_integers(image, bits, unsigned, white_is_zero)
    if tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == SIGNED:
        raise ImageError("signed samples have no defined brightness")
    return image


def _scale_integers(image: Image.Image, bits: int, unsigned: bool, white_is_zero: bool) -> Image.Image:
    grey = np.asarray(image)
    if bits == 32 and unsigned:
        grey = (grey.view(np.uint32) >> 16).astype(np.uint16)
    elif bits != 32 and not unsigned:
        raise ImageError("signed samples have no defined brightness")
    # Pillow writes 16-bit grey as signed 32-bit TIFF if its mode is I.
    bits = min(bits, 16)
    if grey.min() < 0 or grey.max() >= 2**bits:
        raise ImageError(f"samples of more than {bits} bits")
    # A table takes one byte per pixel; arithmetic would take eight, for several arrays.
    table = np.rint(np.arange(2**bits) * 255 / (2**bits - 1)).astype(np.uint8)
    scaled = (255 - table if white_is_zero else table)[grey]
    scaled[grey == image.info.get("transparency", -1)] = 255
    return Image.fromarray(scaled)


def _scale_floats(grey: NDArray[np.float32], white_is_zero: bool) -> Image.Image:
    # NaN fails both comparisons.
    if not (grey.min() >= 0 and grey.max() <= 1):
        raise ImageError("floating-point samples have no defined brightness unless all are from 0 to 1")
    scaled = np.rint(grey * 255).astype(np.uint8)
    return Image.fromarray(255 - scaled if white_is_zero else scaled)


def scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent grey or colour of an opened PNG to the depth that its pixels will have."""
    key = image.info.get("transparency")
    raw_mode = image.tile[0][3] if image.format == "PNG" and image.tile else None
    if raw_mode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif raw_mode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)
