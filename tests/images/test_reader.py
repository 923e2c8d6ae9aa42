"""Work that stops: at a deadline, or if a file has too many parts."""

import io
import time
from pathlib import Path

import pytest

from coserve_images.bounds import check_scans
from coserve_images.decode import decode, open_image
from coserve_images.errors import ImageError, LateError
from coserve_images.reader import BYTES_PER_READ, FREE_READS, Reader
from tests.images.hostile_images import encoded, scans

KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_after_the_deadline_stops(kind: str) -> None:
    with pytest.raises(LateError):
        decode(encoded(kind=kind), deadline_ns=time.perf_counter_ns() - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_a_decoding_that_has_begun_stops(kind: str) -> None:
    """These formats are read piece by piece, 64 KiB at a time."""
    whole = encoded((700, 700), kind)
    assert len(whole) > 2**17
    with open_image(whole, deadline_ns=time.perf_counter_ns() + 10**12) as opened:
        opened._reader._deadline_ns = time.perf_counter_ns()  # type: ignore[union-attr]
        with pytest.raises(LateError):
            opened.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_bytes_give_the_same(kind: str, tmp_path: Path) -> None:
    data = encoded((64, 48), kind)
    (tmp_path / "image").write_bytes(data)
    with (tmp_path / "image").open("rb") as file:
        assert decode(file).tobytes() == decode(data).tobytes()


def test_large_files_may_have_more_parts() -> None:
    small = Reader(bytes(1))
    large = Reader(bytes(BYTES_PER_READ * 100))
    for _ in range(FREE_READS):
        small.read(0)
    with pytest.raises(ImageError, match="too many small parts"):
        small.read(0)
    for _ in range(FREE_READS + 100):
        large.read(0)


def test_bytes_may_be_read_a_few_times() -> None:
    reader = Reader(bytes(2**20))
    for _ in range(4):
        reader.seek(0)
        reader.read()
    reader.seek(0)
    with pytest.raises(ImageError, match="overlap"):
        reader.read()


def test_markers_in_other_segments_are_no_scans() -> None:
    """A thumbnail within EXIF, and whatever follows the image, may look like scans."""
    data = scans(0)
    noise = b"\xff\xe5\x01\x02" + b"\xff\xda" * 128
    check_scans(data[:2] + noise + data[2:] + b"\xff\xda" * 100, 10_000, 10_000)
    with pytest.raises(ImageError, match="more scans than the 32 allowed"):
        check_scans(scans(32), 10_000, 10_000)


def test_a_small_image_may_have_more_scans() -> None:
    data = scans(100)
    with pytest.raises(ImageError, match="scans"):
        decode(data, 10_000)
    assert decode(data, 1_000_000).size == (100, 100)
    assert decode(io.BytesIO(data), 1_000_000).size == (100, 100)
