"""Turn pixels of any colour space, depth and transparency into 8-bit sRGB."""

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from coserve_images.depth import reduce_depth

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MAX_PROFILE_BYTES = 4 * 2**20
"""Larger ICC profiles are ignored; those of printing presses have up to 3 MB."""
BAND_PIXELS = 2**20
"""Pixels that are filled in one step."""
SAME = 2
"""Largest difference in levels between two renderings of one colour that count as the same. Without it, the
rounding of conversions would change images that are sRGB already and say so."""

_SPACES = {"L": b"GRAY", "LA": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
"""The colour space of a profile, from its header, by the mode of images that it applies to."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to 8-bit sRGB, on a white page where it is transparent.

    Raises:
        ImageError: the brightness of its samples is not defined.
    """
    profile = image.info.get("icc_profile")
    image = _resolve(reduce_depth(image))
    if profile:
        image = _convert_profile(image, profile)
    if image.mode in ("LA", "RGBA"):
        return _put_on_page(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _put_on_page(image: Image.Image) -> Image.Image:
    """Return a transparent image on a white page; in bands, since filling an image holds the GIL."""
    page = Image.new("RGB", image.size, None)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = image.crop(box)
        page.paste("white", box)
        page.paste(band.convert("RGB") if band.mode == "LA" else band, box, band.getchannel("A"))
    return page


def _resolve(image: Image.Image) -> Image.Image:
    """Return the image in a mode of `_SPACES`: palettes, transparent colours and premultiplied alpha go."""
    if image.mode in ("La", "RGBa"):
        return image.convert(image.mode.upper())
    if image.mode in ("1", "L") and "transparency" in image.info:
        return image.convert("LA")
    if image.mode in ("P", "PA", "RGB") and image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in _SPACES else image.convert("RGB")


def _convert_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from the colours of an ICC profile to sRGB; a profile that cannot be used is ignored."""
    if len(profile) > MAX_PROFILE_BYTES or profile[16:20] != _SPACES[image.mode]:
        return image
    if image.mode == "LA":
        colours = _convert_profile(image.getchannel("L"), profile).convert("RGB")
        colours.putalpha(image.getchannel("A"))
        return colours
    transform = _transform(bytes(profile), image.mode)
    if transform is None:
        return image
    return transform.apply(image, image if transform.output_mode == image.mode else None)


@lru_cache(8)
def _transform(profile: bytes, mode: str) -> "ImageCmsTransform | None":
    """Return the transform to sRGB; None if the profile is damaged or is sRGB itself."""
    # Multi-process elements can take seconds to evaluate.
    if b"mpet" in profile:
        return None
    try:
        from PIL import ImageCms

        output = "RGBA" if mode == "RGBA" else "RGB"
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, output)
    # Little CMS may be missing from Pillow, and ImageCms raises many kinds of errors.
    except Exception:
        return None
    if mode == "CMYK":
        return transform
    before = _colours().convert(mode)
    after = np.asarray(transform.apply(before), int)
    return None if np.abs(after - np.asarray(before.convert(output))).max() <= SAME else transform


@lru_cache(1)
def _colours() -> Image.Image:
    """Return an image of 4096 colours, and each of the 256 greys."""
    levels = np.arange(0, 256, 17, np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    return Image.fromarray(np.concatenate([colours, greys])[None])
