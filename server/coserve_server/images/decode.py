"""Decode image files to upright 8-bit RGB."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from coserve_server.errors import BadImageError

# The formats of photographs. Pillow's other decoders may start programs, read byte by byte in Python (PPM) or
# have a history of vulnerabilities, so they are not used.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")

# Limit a PNG's total text to Pillow's limit for one chunk: unpacking the default of 64 MiB takes a second.
PngImagePlugin.MAX_TEXT_MEMORY = PngImagePlugin.MAX_TEXT_CHUNK

MAX_RLE_PIXELS = 2**20
"""Limit for run-length encoded BMPs, which Pillow decodes in Python, taking seconds per megapixel."""

# The transposition that turns an image upright, by EXIF orientation (CIPA DC-008, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class EncodedImage:
    """An image file as it was sent; `filename` is None if the request has none."""

    data: bytes
    filename: str | None = None


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file to upright 8-bit RGB, as a viewer would show it on a white page.

    Apply the EXIF orientation, take the first frame of an animation, and scale 16-bit grey to 8 bits.

    Raises:
        BadImageError: the data is not an image in one of `FORMATS`, is broken or truncated, or has more than
            `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(image.size, max_pixels)
            if image.tile and image.tile[0][0] == "bmp_rle":
                check_pixels(image.size, min(max_pixels, MAX_RLE_PIXELS))
            image.load()
            # A frame can be larger than the header says.
            check_pixels(image.size, max_pixels)
            return _to_rgb(_turn_upright(image))
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(f"not an image in a supported format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"more than the {max_pixels} pixels allowed") from error
    # Pillow's plugins raise any error of their parsers: struct.error, SyntaxError, EOFError and others.
    except Exception as error:
        raise BadImageError(f"broken or truncated: {error}") from error


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raise BadImageError if an image of this size has more than `max_pixels`."""
    width, height = size
    if width * height > max_pixels:
        raise BadImageError(f"{width} x {height} pixels, more than the {max_pixels} allowed")


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Viewers show photographs with damaged metadata; the parser raises many kinds of errors.
    except Exception:
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("floating-point samples have no defined brightness")
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise BadImageError("samples of more than 16 bits")
    # A table takes one byte per pixel; arithmetic would take eight, for several arrays.
    scaled = np.rint(np.arange(0x10000) / 257).astype(np.uint8)[grey]
    scaled[grey == image.info.get("transparency", -1)] = 255
    return Image.fromarray(scaled).convert("RGB")
