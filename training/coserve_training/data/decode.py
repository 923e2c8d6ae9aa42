"""From encoded bytes to an RGB array, by the rule in docs/model-repository.md that serving follows too."""

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps


def decode_image(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Decode, resize the shorter side to `size` and cut out the centre.

    Returns:
        `[size, size, 3]` uint8 RGB.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: for data that Pillow cannot decode.
    """
    with Image.open(BytesIO(data)) as opened:
        image = to_rgb(ImageOps.exif_transpose(opened))
    if image.size != (size, size):
        image = centre_crop(image, size)
    return np.asarray(image)


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
