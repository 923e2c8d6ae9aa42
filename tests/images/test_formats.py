"""Which files are taken, and HEIC."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import coserve_images.formats as formats
from coserve_client.images import SUFFIXES as CLIENT_SUFFIXES
from coserve_images.decode import decode
from coserve_images.errors import ImageError
from tests.images.profiles import DISPLAY_P3, rgb_profile
from tests.images.test_orientation import STORED, scene, stored
from tests.project import PROJECT

ROOT = Path(__file__).parents[2]
# The first box of a photograph from a phone.
PHONE = b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEheicmiaf" + bytes(100)


def test_the_client_takes_the_same_suffixes() -> None:
    """It may not import the component, so that it needs httpx alone."""
    assert CLIENT_SUFFIXES == formats.SUFFIXES


def test_every_suffix_that_pillow_has_for_the_formats_is_taken() -> None:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in formats.FORMATS}
    assert known - {".avifs"} <= formats.SUFFIXES
    assert {".heic", ".heif"} <= formats.SUFFIXES


@pytest.mark.parametrize("page", ["docs/guides/training/data.md", "docs/guides/using/classify.md"])
def test_docs_list_the_suffixes(page: str) -> None:
    text = (ROOT / page).read_text()
    listed = max(re.findall(r"`((?:\.\w+ ?){5,})`", text), key=len).split()
    assert set(listed) == (
        formats.OWN_SUFFIXES if page == "docs/guides/training/data.md" else formats.SUFFIXES
    )


@pytest.mark.parametrize(("head", "heic"), [
    (PHONE, True),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", True),
    (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", False),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", False),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1mif1heic", False),
    (b"ftypheic", False),
    (b"", False),
])  # fmt: skip
def test_heic_is_known_by_its_brands(head: bytes, heic: bool) -> None:
    assert formats.is_heic(head) == heic


def test_without_the_extra_heic_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    formats.register_heic.cache_clear()
    with pytest.raises(ImageError, match=r"HEIC needs the extra heic: pip install 'coserve\[heic\]'"):
        decode(PHONE)
    extras = PROJECT["optional-dependencies"]
    assert "heic" in extras


@pytest.fixture
def _heic() -> None:
    pytest.importorskip("pillow_heif")
    formats.register_heic.cache_clear()
    formats.register_heic()


@pytest.mark.usefixtures("_heic")
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("container", [True, False])
def test_heic_is_turned_upright_once(orientation: int, container: bool) -> None:
    """Given EXIF as bytes, pillow-heif writes the turn into the container too, as phones do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored(orientation, "RGB").save(file, "HEIF", exif=exif.tobytes() if container else exif)
    data = file.getvalue()
    assert formats.turns_itself(data) == (container and orientation > 1)
    shown = decode(data)
    assert shown.size == (48, 32)
    assert np.abs(np.asarray(shown.convert("L")).astype(int) - scene()).mean() < 8


@pytest.mark.usefixtures("_heic")
def test_heic_of_phones_has_a_colour_profile() -> None:
    file = io.BytesIO()
    image = Image.new("RGB", (64, 64), (200, 60, 60))
    image.save(file, "HEIF", icc_profile=rgb_profile(DISPLAY_P3), quality=95)
    shown = np.asarray(decode(file.getvalue()))[32, 32].astype(int)
    assert np.abs(shown - [218, 43, 54]).max() <= 6


def heic(width: int = 64, height: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(file, "HEIF")
    return file.getvalue()


@pytest.mark.usefixtures("_heic")
def test_the_first_image_of_several_is_shown() -> None:
    file = io.BytesIO()
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    red.save(file, "HEIF", save_all=True, append_images=[blue])
    shown = decode(file.getvalue())
    assert shown.size == (64, 64)
    assert shown.getpixel((32, 32)) == pytest.approx((255, 0, 0), abs=4)


@pytest.mark.usefixtures("_heic")
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.95, 0.999])
def test_heic_that_is_cut_off_is_an_error(share: float) -> None:
    whole = heic()
    assert decode(whole).size == (64, 64)
    with pytest.raises(ImageError, match="broken or truncated"):
        decode(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match="broken or truncated"):
        decode(PHONE)


@pytest.mark.usefixtures("_heic")
def test_pixels_of_heic_are_limited_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = heic(100, 102)
    lying = whole.replace(struct.pack(">II", 100, 102), struct.pack(">II", 60_000, 60_000))
    claiming_less = whole.replace(struct.pack(">II", 100, 102), struct.pack(">II", 8, 8))
    assert whole not in (lying, claiming_less)
    with pytest.raises(ImageError, match="broken or truncated"):
        decode(claiming_less, 10_000)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    for data in (whole, lying):
        with pytest.raises(ImageError, match="more than the 10000"):
            decode(data, 10_000)
