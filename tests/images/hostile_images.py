"""Image files made to harm a decoder, generated rather than stored, by name of their fault."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image, PngImagePlugin

from tests.images.tiffs import huge_tile, many_strips, overlapping_tags, thin_tiles, tiff

MAX_PIXELS = 10_000
"""The limit that the files of `REFUSED` break, where they break one."""


def encoded(
    size: tuple[int, int] = (16, 16), kind: str = "PNG", mode: str = "RGB", **options: object
) -> bytes:
    file = io.BytesIO()
    picture = Image.effect_noise(size, 50).convert(mode) if mode != "I;16" else Image.new(mode, size, 7)
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *extra: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def gif(canvas: tuple[int, int], frame: tuple[int, int], frames: int = 1) -> bytes:
    """Frames without pixels' worth of data: their codes end at once."""
    one = b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0" + b"\x02\x02\x4c\x01\0"
    return (
        b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + one * frames + b";"
    )


def one_strip(width: int, height: int, count: int = 3, offset: int = 8) -> bytes:
    """A directory that names `count` strips at an offset."""
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, offset),
        (278, height),
        (279, count),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"


def patched(data: bytes, before: bytes, size: tuple[int, int], order: str) -> bytes:
    """The file with another size after the marker `before`; `order` packs the two numbers."""
    at = data.index(before) + len(before)
    new = struct.pack(order, *size)
    return data[:at] + new + data[at + len(new) :]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.html", "<script>alert(1)</script>")
    return file.getvalue()


def text_bomb(kind: bytes) -> bytes:
    """Compressed text, or a colour profile, of 64 MB."""
    name = b"a\0\0" if kind == b"zTXt" else b"a\0\1\0\0\0" if kind == b"iTXt" else b"icc\0\0"
    return png(1, 1, zlib.compress(bytes(4)), chunk(kind, name + zlib.compress(bytes(2**26), 9)))


def apng(frames: int) -> bytes:
    pixels = zlib.compress(b"\0\xff\0\0" * 1)
    control = [
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * i, 1, 1, 0, 0, 1, 10, 0, 0))
        + chunk(b"fdAT", struct.pack(">I", 2 * i + 1) + pixels)
        for i in range(1, frames)
    ]
    first = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 10, 0, 0))
    whole = png(1, 1, pixels, chunk(b"acTL", struct.pack(">II", frames, 0)), first)
    return whole[:-12] + b"".join(control) + whole[-12:]


def rle_bmp(side: int) -> bytes:
    data = bytearray(encoded((8, 8), "BMP", "P"))
    struct.pack_into("<iiHHI", data, 18, side, side, 1, 8, 1)
    return bytes(data) + b"\x01\x02" * 1000


def exif(directory: bytes) -> bytes:
    return encoded(kind="JPEG", exif=b"Exif\0\0" + directory)


def commented(comments: bytes) -> bytes:
    """A GIF with more in front of its frame."""
    whole = encoded(kind="GIF")
    at = whole.index(b",\0\0\0\0\x10\0\x10\0")
    return whole[:at] + comments + whole[at:]


def scans(count: int, size: tuple[int, int] = (100, 100)) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = encoded(size, "JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[at:-2] * count + whole[-2:]


def sequential_scans(count: int) -> bytes:
    """A baseline JPEG whose three components have a scan each, and more of them than needed."""
    whole = encoded((100, 100), "JPEG", subsampling=0)
    at = whole.index(b"\xff\xda")
    one = b"\xff\xda\x00\x08\x01%c\x00\x00\x3f\x00" + bytes(200)
    return whole[:at] + b"".join(one % (1 + i % 3) for i in range(count)) + b"\xff\xd9"


def scans_in_tiff(strips: int) -> bytes:
    """A TIFF of 96 x 96 pixels, whose strips are all the same JPEG of 40 scans."""
    rows = 96 // strips
    return tiff(
        {
            256: ("I", [96]), 257: ("I", [96]), 258: ("H", [8, 8, 8]), 259: ("H", [7]),
            262: ("H", [6]), 277: ("H", [3]), 278: ("I", [rows]),
        },
        scans(30, (96, rows)), strips=strips,
    )  # fmt: skip


def before_pixels(data: bytes, extra: bytes) -> bytes:
    """The JPEG with something more behind its first marker."""
    return data[:2] + extra + data[2:]


def profiles(count: int) -> bytes:
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**19), 9))
    return png(1, 1, zlib.compress(bytes(4)), *[profile] * count)


KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")

REFUSED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\xff",
    "PNG of a billion pixels": lambda: png(30_000, 30_000, zlib.compress(bytes(9))),
    "PNG of more pixels than numbers": lambda: png(2**31 - 1, 2**31 - 1, b""),
    "PNG bomb that is honest": lambda: encoded((101, 100), mode="L"),
    "PNG without width": lambda: png(0, 5, zlib.compress(b"")),
    "PNG of an unknown depth": lambda: png(1, 1, zlib.compress(bytes(4)), depth=7),
    "PNG without pixels": lambda: png(50, 50, b""),
    "PNG whose text inflates to 64 MB": lambda: text_bomb(b"zTXt"),
    "PNG whose international text inflates to 64 MB": lambda: text_bomb(b"iTXt"),
    "PNG whose colour profile inflates to 64 MB": lambda: text_bomb(b"iCCP"),
    "PNG chunk longer than the file": lambda: encoded()[:8] + struct.pack(">I", 2**31 - 1) + b"IHDR",
    "GIF canvas of four billion pixels": lambda: gif((65_535, 65_535), (1, 1)),
    "GIF frame larger than its canvas": lambda: gif((1, 1), (65_535, 65_535)),
    "GIF frame a little larger than allowed": lambda: gif((1, 1), (101, 100)),
    "GIF of no size": lambda: gif((0, 0), (0, 0)),
    "GIF without a frame": lambda: gif((5, 5), (5, 5), frames=0),
    "JPEG header that lies": lambda: patched(
        encoded(kind="JPEG"), b"\xff\xc0\x00\x11\x08", (65_535, 65_535), ">HH"
    ),
    "JPEG of no size": lambda: patched(encoded(kind="JPEG"), b"\xff\xc0\x00\x11\x08", (0, 16), ">HH"),
    "BMP header that lies": lambda: patched(encoded(kind="BMP"), b"\x28\0\0\0", (2**30, 2**30), "<ii"),
    "BMP of negative width": lambda: patched(encoded(kind="BMP"), b"\x28\0\0\0", (-16, 16), "<ii"),
    "BMP of no size": lambda: patched(encoded(kind="BMP"), b"\x28\0\0\0", (0, 0), "<ii"),
    "BMP in run lengths": lambda: rle_bmp(5_000),
    "TIFF header that lies": lambda: one_strip(2**31, 2**31),
    "TIFF of no size": lambda: one_strip(0, 0),
    "TIFF strip of four gigabytes": lambda: one_strip(50, 50, count=2**32 - 1),
    "TIFF strip outside of the file": lambda: one_strip(50, 50, count=2500, offset=2**32 - 9),
    "TIFF whose directory is itself": lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "WebP header that lies": lambda: patched(
        encoded((16, 16), "WEBP", lossless=True), b"VP8L", (2**32 - 1, 0xFFFFFFFF), "<II"
    ),
    "WebP of another length": lambda: b"RIFF\xff\xff\xff\xffWEBP" + encoded(kind="WEBP")[12:60],
    "AVIF of another size than its pixels": lambda: patched(
        encoded((16, 16), "AVIF"), b"ispe\0\0\0\0", (60_000, 60_000), ">II"
    ),
    "JPEG of 40 scans": lambda: scans(40),
    "JPEG of 120 sequential scans": lambda: sequential_scans(120),
    "JPEG of 300,000 empty segments": lambda: before_pixels(encoded(kind="JPEG"), b"\xff\xfe\0\2" * 300_000),
    "JPEG of 300,000 fill bytes": lambda: before_pixels(encoded(kind="JPEG"), b"\xff" * 300_000),
    "PNG of 300 colour profiles": lambda: profiles(300),
    "PNG of 100,000 empty chunks": lambda: png(1, 1, zlib.compress(bytes(4)), chunk(b"prVt", b"") * 100_000),
    "GIF with 100,000 comments": lambda: commented(b"!\xfe\1a\0" * 100_000),
    "GIF with a comment of 100,000 bytes": lambda: commented(b"!\xfe" + (b"\xff" + bytes(255)) * 400 + b"\0"),
    "TIFF half in the wrong byte order": lambda: b"II\0*" + many_strips(60_000)[4:],
    "BigTIFF, big-endian": lambda: b"MM\0+\0\x08\0\0" + bytes(600_000),
    "TIFF of 60,000 strips for four rows": lambda: many_strips(60_000),
    "TIFF tile of 40 megapixels for a hundred": lambda: huge_tile(6_400),
    "TIFF of tiles that reach far beyond the image": thin_tiles,
    "TIFF whose tags are all of it": lambda: overlapping_tags(20_000),
    "TIFF of a JPEG of 40 scans": lambda: scans_in_tiff(1),
    "TIFF of strips that share a JPEG of 40 scans": lambda: scans_in_tiff(6),
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "SVG of entities": lambda: b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><svg>&b;</svg>",
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "PDF": lambda: encoded(kind="PDF"),
    "ICO": lambda: encoded(kind="ICO"),
    "TGA": lambda: encoded(kind="TGA"),
    "SGI": lambda: encoded(kind="SGI"),
    "PCX": lambda: encoded(kind="PCX"),
    "DDS": lambda: encoded(kind="DDS"),
    "PPM": lambda: encoded(kind="PPM"),
    "PPM that is read byte by byte": lambda: b"P3 90 90 255\n" + b"#\n" * 100_000,
    "JPEG 2000": lambda: encoded(kind="JPEG2000"),
    "ICNS": lambda: b"icns" + struct.pack(">I", 2**31) + b"ic10" + struct.pack(">I", 0),
    "PSD": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3),
    "FLI": lambda: struct.pack("<IHHHHH", 128, 0xAF11, 1, 9, 9, 8) + bytes(116),
    "GZIP of an image": lambda: zlib.compress(encoded()),
    "ZIP": zipped,
    "ELF": lambda: b"\x7fELF" + bytes(100),
    **{
        f"{kind} cut off after {share:.0%}": lambda kind=kind, share=share: (  # type: ignore[misc]
            (whole := encoded((64, 64), kind))[: int(len(whole) * share)]
        )
        for kind in KINDS
        for share in (0.02, 0.5)
    },
}
"""Files that must be refused under `MAX_PIXELS`."""

SHOWN: dict[str, Callable[[], bytes]] = {
    "AVIF larger than it says": lambda: patched(encoded((200, 200), "AVIF"), b"ispe\0\0\0\0", (8, 8), ">II"),
    "JPEG and ZIP in one": lambda: encoded(kind="JPEG") + zipped(),
    "GIF and HTML in one": lambda: encoded(kind="GIF") + b"<script>alert(1)</script>",
    "PNG and shell script in one": lambda: encoded() + b"\n#!/bin/sh\nrm -rf /\n",
    "EXIF directory outside of the file": lambda: exif(b"MM\0*\0\0\0\x08\xff\xff\xff"),
    "EXIF directory that names itself": lambda: exif(
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    ),
    "EXIF of four billion values": lambda: exif(
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0112, 3, 2**32 - 1, 8, 0)
    ),
    "EXIF orientation that does not exist": lambda: exif(
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0112, 3, 1, 77, 0)
    ),
    "EXIF that is noise": lambda: exif(bytes(range(256)) * 200),
    "GIF of five thousand frames": lambda: (
        encoded(
            kind="GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), c) for c in ("red", "blue")]
        )[:-1]
        + gif((16, 16), (1, 1), 5000)[19:]
    ),
    "APNG of five thousand frames": lambda: apng(5000),
    "JPEG with a comment of a megabyte": lambda: (
        (plain := encoded(kind="JPEG"))[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 16 + plain[2:]
    ),
    "PNG with ten thousand texts": lambda: png(
        1, 1, zlib.compress(bytes(4)), *[chunk(b"tEXt", b"a%d\0b" % i) for i in range(10_000)]
    ),
    "PNG whose checksum of pixels is wrong": lambda: encoded()[:-13] + b"\0" + encoded()[-12:],
    "PNG with an EXIF orientation in hexadecimal": lambda: encoded(pnginfo=_raw_exif()),
    "JPEG of 20 scans": lambda: scans(10),
    "TIFF of strips with a JPEG of a scan each": lambda: encoded(
        (16, 608), "TIFF", compression="jpeg", strip_size=16 * 3 * 16
    ),
    "16-bit grey": lambda: encoded(mode="I;16"),
}
"""Files that viewers show all the same."""


def _raw_exif() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n99\n" + "zz" * 99)
    return info
