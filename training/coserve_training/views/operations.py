"""Operations on 8-bit RGB images that AutoAugment and RandAugment are made of, by Pillow."""

import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""
Move = Callable[[Image.Image, float, Resampling, Colour], Image.Image]
"""Moves pixels by an amount, with an interpolation; the colour fills what moved into the image."""
Recolour = Callable[[Image.Image, float], Image.Image]
"""Changes colours by an amount."""


def _shear_x(image: Image.Image, slope: float, resample: Resampling, fill: Colour) -> Image.Image:
    return _transform(image, (1, slope, 0, 0, 1, 0), resample, fill)


def _shear_y(image: Image.Image, slope: float, resample: Resampling, fill: Colour) -> Image.Image:
    return _transform(image, (1, 0, 0, slope, 1, 0), resample, fill)


def _translate_x(image: Image.Image, share: float, resample: Resampling, fill: Colour) -> Image.Image:
    return _transform(image, (1, 0, share * image.width, 0, 1, 0), resample, fill)


def _translate_y(image: Image.Image, share: float, resample: Resampling, fill: Colour) -> Image.Image:
    return _transform(image, (1, 0, 0, 0, 1, share * image.height), resample, fill)


def _transform(
    image: Image.Image, matrix: tuple[float, ...], resample: Resampling, fill: Colour
) -> Image.Image:
    """Take each pixel `x, y` from `a·x + b·y + c, d·x + e·y + f`."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def _rotate(image: Image.Image, degrees: float, resample: Resampling, fill: Colour) -> Image.Image:
    return image.rotate(degrees, resample, fillcolor=fill)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, int(bits))


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    """Brighten the darker half of the levels."""
    return image.point([min(255, level + int(added)) if level < 128 else level for level in range(256)] * 3)


MOVES: dict[str, Move] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
}
"""By slope, by share of the side, and by degrees counter-clockwise."""

RECOLOURS: dict[str, Recolour] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
"""By bits that remain (Posterize), the level from which to invert (Solarize), levels to add (SolarizeAdd),
and a factor that leaves the image as it is at 1."""
