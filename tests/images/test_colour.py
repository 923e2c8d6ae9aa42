"""Colour profiles are converted to sRGB."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from coserve_images import colour
from coserve_images.decode import decode
from tests.images import profiles
from tests.images.hostile_images import chunk, png

ADOBE_RGB = profiles.rgb_profile(profiles.ADOBE_RGB, 2.19921875)
DISPLAY_P3 = profiles.rgb_profile(profiles.DISPLAY_P3)
SRGB = profiles.rgb_profile(profiles.SRGB)
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}


def encode(image: Image.Image, profile: bytes | None, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, icc_profile=profile, **LOSSLESS.get(kind, {}), **options)
    return file.getvalue()


def photograph(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((48, 32), Image.Resampling.BICUBIC).convert(mode)


def converted(image: Image.Image, profile: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert shown is not None
    return np.asarray(shown)


@pytest.mark.parametrize("profile", [ADOBE_RGB, DISPLAY_P3], ids=["Adobe RGB", "Display P3"])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_wide_colours_become_srgb(profile: bytes, kind: str) -> None:
    shown = np.asarray(decode(encode(photograph(), profile, kind)))
    np.testing.assert_array_equal(shown, converted(photograph(), profile))
    assert np.abs(shown.astype(int) - np.asarray(photograph())).max() > 10


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_formats_have_profiles_too(kind: str) -> None:
    plain = decode(encode(photograph(), None, kind))
    shown = np.asarray(decode(encode(photograph(), ADOBE_RGB, kind)))
    assert np.abs(shown.astype(int) - converted(plain, ADOBE_RGB)).max() <= 1


def test_pure_red_of_adobe_rgb_by_the_book() -> None:
    """(180, 60, 60) in Adobe RGB is about (212, 55, 58) in sRGB."""
    shown = np.asarray(decode(encode(Image.new("RGB", (2, 2), (180, 60, 60)), ADOBE_RGB)))[0, 0]
    linear = (np.array([180, 60, 60]) / 255) ** 2.19921875
    xyz = linear @ np.array(profiles.ADOBE_RGB)
    straight = np.clip(xyz @ np.linalg.inv(np.array(profiles.SRGB)), 0, 1)
    expected = np.where(straight <= 0.0031308, 12.92 * straight, 1.055 * straight ** (1 / 2.4) - 0.055) * 255
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("kind", LOSSLESS)
def test_what_says_it_is_srgb_keeps_every_pixel(kind: str) -> None:
    """A conversion would round some colours to others."""
    levels = np.arange(0, 256, 17, np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
    image = Image.fromarray(colours)
    assert np.abs(converted(image, SRGB).astype(int) - colours).max() == 1
    np.testing.assert_array_equal(np.asarray(decode(encode(image, SRGB, kind))), colours)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_profiles_are_applied(kind: str) -> None:
    profile = profiles.grey_profile(1.0)
    shown = np.asarray(decode(encode(Image.new("L", (2, 2), 55), profile, kind)))[0, 0]
    # A linear 55 / 255 is 128 in sRGB.
    assert np.abs(shown.astype(int) - 128).max() <= 2


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_outlives_the_profile(mode: str) -> None:
    profile = profiles.grey_profile(1.0) if mode == "LA" else ADOBE_RGB
    image = Image.new("RGBA", (2, 1), (55, 55, 55, 255))
    image.putpixel((0, 0), (55, 55, 55, 0))
    shown = np.asarray(decode(encode(image.convert(mode), profile)))[0]
    assert (shown[0] == 255).all()
    opaque = decode(encode(image.convert(mode[:-1]), profile))
    np.testing.assert_array_equal(shown[1], np.asarray(opaque)[0, 1])


def test_palettes_have_profiles() -> None:
    palette = photograph().quantize(16)
    shown = np.asarray(decode(encode(palette, ADOBE_RGB)))
    np.testing.assert_array_equal(shown, converted(palette.convert("RGB"), ADOBE_RGB))


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_profiles_are_applied(kind: str) -> None:
    """With this profile, all cyan is a light grey; without one it is a colour."""
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    shown = np.asarray(decode(encode(cyan, profiles.cmyk_profile(), kind)))[8, 8].astype(int)
    assert np.ptp(shown) <= 4
    assert 170 < shown.mean() < 200
    plain = np.asarray(decode(encode(cyan, None, kind)))[8, 8].astype(int)
    assert np.abs(plain - [0, 255, 255]).max() <= 4


@pytest.mark.parametrize("profile", [
    b"no profile", ADOBE_RGB[:300], ADOBE_RGB[:128] + bytes(400), profiles.grey_profile(1.0),
    profiles.cmyk_profile(), ADOBE_RGB + b"mpet", ADOBE_RGB + bytes(4 * 2**20),
], ids=["text", "cut off", "zeros", "grey", "CMYK", "multi-process", "too large"])  # fmt: skip
def test_a_profile_that_cannot_be_used_counts_as_srgb(profile: bytes) -> None:
    data = encode(photograph(), profile, "TIFF")
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(photograph()))


def test_a_profile_in_a_damaged_chunk_counts_as_srgb() -> None:
    broken = chunk(b"iCCP", b"icc\0\0" + zlib.compress(ADOBE_RGB)[:-40] + b"x" * 40)
    data = png(1, 1, zlib.compress(b"\0\x64\x32\x19"), broken)
    assert np.asarray(decode(data))[0, 0].tolist() == [0x64, 0x32, 0x19]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("band_pixels", [1, 30, 31, 60, 10_000])
def test_transparent_images_are_put_on_a_page_in_bands(
    mode: str, band_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 30, len(mode)), np.uint8)
    pixels[:, :9, -1] = 0
    pixels[:, 9:12, -1] = 255
    monkeypatch.setattr(colour, "BAND_PIXELS", band_pixels)
    shown = np.asarray(colour.to_rgb(Image.fromarray(pixels, mode))).astype(int)
    alpha = pixels[..., -1:] / 255
    assert np.abs(shown - (pixels[..., :-1] * alpha + 255 * (1 - alpha))).max() <= 1
    assert (shown[:, :9] == 255).all()
