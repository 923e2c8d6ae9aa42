"""What files made to harm a decoder cost Pillow alone, and with the limits of `coserve_images`.

python benchmarks/hostile_images.py            a row of docs/reference/limits.md for each file
"""

import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from coserve_images.formats import register_heic
from tests.images import hostile_images as hostile
from tests.images.tiffs import tiff

register_heic()
SIDE = 7000
TIMEOUT_S = 30


def flat(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return an image of one colour."""
    file = BytesIO()
    Image.new(mode, (SIDE, SIDE)).save(file, kind, **options)
    return file.getvalue()


def many_scans(count: int, mode: str) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    whole = flat("JPEG", mode, progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[at:-2] * count + whole[-2:]


def grey_tags(width: int, height: int, compression: int = 1) -> dict[int, tuple[str, list[int]]]:
    """Return tags of an 8-bit grey TIFF."""
    return {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8]), 259: ("H", [compression]),
        262: ("H", [1]), 277: ("H", [1]),
    }  # fmt: skip


def tiles(width: int, height: int, count: int, image: tuple[int, int]) -> bytes:
    """Return a TIFF of tiles that are all the same bytes."""
    tags = grey_tags(*image, compression=8) | {322: ("I", [width]), 323: ("I", [height])}
    return tiff(tags, zlib.compress(bytes(width * height), 9), offsets=324, strips=count)


def jpeg_in_tiff() -> bytes:
    """Return a TIFF whose only strip is a JPEG of many scans."""
    tags = grey_tags(SIDE, SIDE, compression=7)
    tags |= {258: ("H", [8, 8, 8]), 262: ("H", [6]), 277: ("H", [3]), 278: ("I", [SIDE])}
    return tiff(tags, many_scans(80, "RGB"))


def small(kind: str) -> bytes:
    """Return an image of 16 x 16 pixels."""
    return hostile.encoded(kind=kind)


def in_gif(extension: bytes) -> bytes:
    """Return a GIF with an extension before its frame."""
    whole = hostile.gif((16, 16), (16, 16))
    at = whole.index(b",")
    return whole[:at] + extension + whole[at:]


def in_png(chunk: bytes, count: int) -> bytes:
    """Return a PNG with a chunk repeated before its pixels."""
    return hostile.png(1, 1, zlib.compress(bytes(4)), *[chunk] * count)


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG of 1000 progressive scans": lambda: many_scans(1000, "L"),
    "JPEG of 90 scans in a TIFF": jpeg_in_tiff,
    "JPEG of two million empty segments": lambda: hostile.before_pixels(
        small("JPEG"), b"\xff\xfe\0\2" * 2**21
    ),
    "JPEG of 4 MB of fill bytes": lambda: hostile.before_pixels(small("JPEG"), b"\xff" * 2**22),
    "JPEG of 480 segments of EXIF": lambda: hostile.before_pixels(
        small("JPEG"), (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 480
    ),
    "PNG of colour profiles that inflate to 1 MB each": lambda: in_png(
        hostile.chunk(b"iCCP", b"i\0\0" + zlib.compress(bytes(2**20), 9)), 8000
    ),
    "PNG of 700,000 empty chunks": lambda: in_png(hostile.chunk(b"prVt", b""), 700_000),
    "GIF of four million blocks of comments": lambda: in_gif(b"!\xfe" + b"\1a" * 2**22 + b"\0"),
    "TIFF of two million strips": lambda: tiff(grey_tags(1, 2**21) | {278: ("I", [1])}, b"a", strips=2**21),
    "TIFF of 2,500 tiles of 48 megapixels each": lambda: tiles(16, 2_999_984, 2500, (40_000, 1)),
    "TIFF tile of 1,600 megapixels": lambda: tiles(40_000, 40_000, 1, (10, 10)),
    "JPEG of one colour": lambda: flat("JPEG"),
    "PNG of one colour": lambda: flat("PNG", "RGBA"),
    "WebP of one colour": lambda: flat("WEBP", method=0),
    "AVIF of one colour": lambda: flat("AVIF", speed=10),
    "HEIC of one colour": lambda: flat("HEIF"),
    "GIF of one colour": lambda: flat("GIF", "P"),
    "TIFF of one colour, LZMA": lambda: flat("TIFF", compression="lzma"),
    "JPEG without pixels": lambda: (whole := flat("JPEG"))[: whole.index(b"\xff\xda") + 14] + b"\xff\xd9",
    "APNG of five thousand frames": lambda: hostile.apng(5000),
    "EXIF whose tags overlap": lambda: hostile.encoded(
        kind="PNG",
        exif=b"II*\0\x08\0\0\0"
        + struct.pack("<H", 65_000)
        + b"".join(struct.pack("<HHII", tag, 1, 2**22, 0) for tag in range(65_000))
        + bytes(2**22),
    ),
}


def measure(data: bytes, way: str) -> str:
    """Return processor seconds and megabytes of a process that decodes the file, and how it ended."""
    command = [sys.executable, "-W", "ignore", __file__, way]
    try:
        ended = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"over {TIMEOUT_S} s"
    if ended.returncode:
        return f"ended with {ended.returncode}"
    seconds, megabytes, end = json.loads(ended.stdout)
    return f"{seconds:.2f} s, {megabytes:.0f} MB{end}"


def decode_once(way: str) -> None:
    """Decode the file of standard input, and print what it cost."""
    from coserve_images.decode import decode
    from coserve_images.errors import ImageError

    data = sys.stdin.buffer.read()
    Image.init()
    end = ""
    before = peak_mb()
    began = time.process_time()
    try:
        if way == "here":
            decode(data, 50_000_000)
        else:
            with Image.open(BytesIO(data)) as image:
                image.load()
    except ImageError:
        end = ", refused"
    # Pillow's plugins raise errors of many types.
    except Exception as error:
        end = f", {type(error).__name__}"
    print(json.dumps([time.process_time() - began, peak_mb() - before, end]))


def peak_mb() -> float:
    """Return this process's largest memory so far; getrusage counts that of the process before exec, too."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        decode_once(sys.argv[1])
    else:
        print("| file | size | Pillow alone | here |\n| --- | --- | --- | --- |")
        for name, make in FILES.items():
            file = make()
            print(f"| {name} | {len(file) / 1e3:,.0f} kB | {measure(file, 'pillow')} ", end="")
            print(f"| {measure(file, 'here')} |", flush=True)
