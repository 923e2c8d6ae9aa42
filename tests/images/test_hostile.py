"""Decode files that were made to harm the decoder."""

import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve_images import bounds
from coserve_images.bounds import check_scans
from coserve_images.decode import decode
from coserve_images.errors import ImageError
from tests.images.hostile_images import MAX_PIXELS, REFUSED, SHOWN, before_pixels, encoded, scans
from tests.images.tiffs import huge_tile

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged metadata


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(REFUSED[name](), MAX_PIXELS)
    assert "\n" not in str(caught.value)


def test_a_jpeg_with_many_segments_of_exif_is_refused() -> None:
    segments = (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 40
    with pytest.raises(ImageError, match="too many segments of EXIF"):
        decode(before_pixels(encoded(kind="JPEG"), segments), MAX_PIXELS)


def test_a_tiff_that_says_two_things_is_refused() -> None:
    """Pillow would take one width of the tiles, and libtiff the other."""
    whole = huge_tile(64)
    twice = struct.pack("<HHHII", struct.unpack("<H", whole[8:10])[0] + 1, 322, 4, 1, 2**20)
    with pytest.raises(ImageError, match="occurs twice"):
        decode(whole[:8] + twice + whole[10:], MAX_PIXELS)


@pytest.mark.parametrize("count", [0, 5, 24])
@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1000])
def test_scans_are_counted_in_pieces(count: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scans(count, (16, 16))
    expected = data.count(b"\xff\xda")
    # Counting the bytes alone finds some that are no scans.
    monkeypatch.setattr(bounds, "_count_pairs", lambda *_: expected + 1)
    monkeypatch.setattr(bounds, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(bounds, "MAX_SCANS", 1)
    check_scans(data, 1, expected)
    with pytest.raises(ImageError, match="more scans"):
        check_scans(data, 1, expected - 1)


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1000])
def test_bytes_are_counted_in_pieces(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Searched(bytes):
        def count(self, part: bytes, begin: int = 0, end: int = 2**31) -> int:  # type: ignore[override]
            assert end - begin <= piece_bytes + 1
            return super().count(part, begin, end)

    monkeypatch.setattr(bounds, "PIECE_BYTES", piece_bytes)
    data = Searched(b"\xff\xda" * 9 + b"\xff\xff\xda" * 5)
    assert bounds._count(data, b"\xff\xda") == 14


@given(st.lists(st.sampled_from([b"\xff", b"\xda", b"\xff\xda", b"a"]), max_size=9).map(b"".join))
def test_pairs_are_counted_at_even_and_odd_positions(data: bytes) -> None:
    assert bounds._count_pairs(data, b"\xff\xda") == data.count(b"\xff\xda")


def test_directories_of_exif_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow before 13 needs the check; each directory costs a copy of the file."""
    monkeypatch.setattr(bounds, "BOUNDS_TAGS", False)
    whole = encoded(kind="JPEG")
    assert decode(whole + b"II*\0" * 32, MAX_PIXELS)
    with pytest.raises(ImageError, match="too many directories of EXIF"):
        decode(whole + b"II*\0" * 33, MAX_PIXELS)


def test_damaged_metadata_gives_no_warnings() -> None:
    """A warning per tag would fill the log."""
    script = (
        "import sys\n"
        "from coserve_images.decode import decode\n"
        "print(decode(sys.stdin.buffer.read(), 10_000).mode)\n"
    )
    directory = b"II*\0\x08\0\0\0" + struct.pack("<H", 200)
    directory += b"".join(struct.pack("<HHII", tag, 1, 2**30, 8) for tag in range(1, 201))
    data = encoded(kind="JPEG", exif=b"Exif\0\0" + directory)
    ended = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert (ended.stdout, ended.stderr) == (b"RGB\n", b"")


@pytest.mark.parametrize("name", SHOWN)
def test_is_shown(name: str) -> None:
    assert decode(SHOWN[name](), MAX_PIXELS).mode == "RGB"


@pytest.mark.parametrize(("mode", "bytes_per_pixel"), [("L", 6), ("RGB", 6), ("I;16", 9), ("RGBA", 11)])
def test_decoding_takes_a_few_bytes_per_pixel(mode: str, bytes_per_pixel: int) -> None:
    """Measure the growth of a process of its own, up to its peak: figures of docs/reference/limits.md."""
    script = (
        "import re, sys\n"
        "from coserve_images.decode import decode\n"
        "data = sys.stdin.buffer.read()\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "before = peak(); decode(data, 10**7); print((peak() - before) / 4e6)\n"
    )
    data = encoded((2000, 2000), "BMP" if mode == "RGB" else "PNG", mode)
    ended = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
    assert float(ended.stdout) <= bytes_per_pixel
