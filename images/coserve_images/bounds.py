"""Refuse files that cost far more than their pixels, before they are decoded."""

import re
import struct

import numpy as np
import PIL
from PIL import ImageFile

from coserve_images.errors import ImageError
from coserve_images.reader import Reader

MAX_PIXELS = 178_956_970
"""The most that any caller may allow, as Pillow refuses more. Phones take 108 million."""
MAX_RLE_PIXELS = 2**20
"""Limit for run-length encoded BMPs, which Pillow decodes in Python, taking seconds per megapixel."""
MAX_SCANS = 32
"""Limit on the scans of a JPEG with the most pixels allowed; a smaller one may have more in proportion. Each
scan walks the whole image, however few bytes it has. Encoders write about ten."""
MAX_SEGMENTS = 10_000
"""Limit on a progressive JPEG's segments, which are counted in Python."""
MAX_EXIF_SEGMENTS = 32
"""Limit on a JPEG's segments of EXIF, which need no second one, and on what may begin a directory of EXIF."""
MAX_STRIPS = 50_000
"""Limit on a TIFF's strips or tiles, for each of which Pillow starts a decoder."""
MAX_TILED = 4
"""Limit on the pixels of a TIFF's tiles together, in images of the most pixels allowed. If tiles are a little
smaller than the image, four of them are needed."""
MAX_COMPRESSED_CHUNKS = 256
"""Limit on a PNG's compressed texts and profiles, each of which may inflate to a megabyte."""

PIECE_BYTES = 2**20
"""Files are searched in pieces of this size, since searching holds the GIL."""
MAX_COMMENT_BYTES = 2**16
"""Limit on a GIF's comments."""
BOUNDS_TAGS = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether Pillow limits the bytes of EXIF's tags, which may overlap, by itself."""

Tags = dict[int, tuple[int, int, bytes]]
"""For each tag of a TIFF or of EXIF: its type, its count, and its value or the value's offset."""

# A JPEG's marker. Entropy-coded data contains FF 00 and FF D0 to FF D7 alone (ITU-T T.81, B.1.1.5).
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_END_OF_IMAGE = 0xD9
_START_OF_SCAN = 0xDA

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0")
"""How TIFFs begin that Pillow reads: in either byte order, some half in the wrong one. BigTIFF has a plus."""
_JPEG_IN_TIFF = (6, 7)

# Tags of TIFF 6.0.
_WIDTH = 256
_HEIGHT = 257
_COMPRESSION = 259
_STRIP_OFFSETS = 273
_STRIP_COUNTS = 279
_TILE_WIDTH = 322
_TILE_HEIGHT = 323
_TILE_OFFSETS = 324
_TILE_COUNTS = 325
_STRUCTURE = {_WIDTH, _HEIGHT, _COMPRESSION, _STRIP_OFFSETS, _STRIP_COUNTS} | {
    _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS,
}  # fmt: skip
_EXIF_HEAD = re.compile(rb"II\*\0|MM\0\*|II\0\*|MM\*\0|II\+\0")
_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type; all other types have one."""
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""How integers are packed, by their type."""


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raise ImageError if an image of this size has more than `max_pixels`."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels, more than the {max_pixels} allowed")


def check_file(reader: Reader, max_pixels: int) -> None:
    """Raise ImageError if parsing the file's structure would take long, before Pillow parses it."""
    head = reader.read(16)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_chunks(reader)
    elif head[:4] in TIFF_HEADS:
        _check_directory(reader, head, max_pixels)
    # Pillow takes the directory of a big-endian BigTIFF for a short one, and libtiff does not.
    elif head[:4] == b"MM\0+":
        raise ImageError("a big-endian BigTIFF, which is not supported")
    elif head.startswith(b"GIF8"):
        _check_comments(reader)
    elif head.startswith(b"\xff\xd8"):
        _check_metadata(reader)
    elif head[4:8] == b"ftyp" and not BOUNDS_TAGS:
        _check_exif(reader.getvalue())


def check_opened(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Raise ImageError if an opened image has too many pixels."""
    check_pixels(image.size, max_pixels)
    if image.tile and image.tile[0][0] == "bmp_rle":
        check_pixels(image.size, min(max_pixels, MAX_RLE_PIXELS))


def check_scans(data: bytes, pixels: int, max_pixels: int) -> None:
    """Raise ImageError if a JPEG has too many scans for its pixels."""
    allowed = MAX_SCANS * max_pixels // pixels
    # Counting these two bytes takes little time. They may also occur in a thumbnail, or behind the image.
    if _count_pairs(data, b"\xff\xda") > allowed and _count_scans(data, allowed) > allowed:
        raise ImageError(f"more scans than the {allowed} allowed for a JPEG of {pixels} pixels")


def _count_pairs(data: bytes, pair: bytes) -> int:
    """Count how often two unequal bytes follow each other; `bytes.count` takes several times as long."""
    wanted = np.frombuffer(pair, np.uint16)
    found = 0
    for begin in range(min(2, len(data))):
        pairs = np.frombuffer(data, np.uint16, (len(data) - begin) // 2, begin)
        found += int(np.count_nonzero(pairs == wanted))
    return found


def _count_scans(data: bytes, enough: int) -> int:
    """Count a JPEG's scans, until there are more than `enough`."""
    scans = 0
    position = 2
    for _ in range(MAX_SEGMENTS):
        marker = _find_marker(data, position)
        if marker is None or data[marker.end() - 1] == _END_OF_IMAGE:
            return scans
        scans += data[marker.end() - 1] == _START_OF_SCAN
        if scans > enough:
            return scans
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise ImageError(f"more than {MAX_SEGMENTS} segments")


def _find_marker(data: bytes, position: int) -> re.Match[bytes] | None:
    """Return a JPEG's next marker, at the position or behind it."""
    for begin in range(position, len(data), PIECE_BYTES):
        marker = _MARKER.search(data, begin, begin + PIECE_BYTES + 1)
        if marker is not None:
            return marker
    return None


def _count(data: bytes, part: bytes) -> int:
    """Count how often a part occurs that does not overlap itself."""
    begins = range(0, len(data), PIECE_BYTES)
    return sum(data.count(part, begin, begin + PIECE_BYTES + len(part) - 1) for begin in begins)


def _check_comments(reader: Reader) -> None:
    """Check a GIF's comments, each block of which Pillow before 13 joins to those before it."""
    reader.seek(10)
    flags = reader.read(1)
    if flags and flags[0] & 0x80:
        reader.seek(13 + 3 * 2 ** (flags[0] % 8 + 1))
    else:
        reader.seek(13)
    comments = 0
    while reader.read(1) == b"!":
        label = reader.read(1)
        while (size := reader.read(1)) > b"\0":
            reader.seek(size[0], 1)
            comments += size[0] * (label == b"\xfe")
            if comments > MAX_COMMENT_BYTES:
                raise ImageError(f"more than {MAX_COMMENT_BYTES} bytes of comments")


def _check_metadata(reader: Reader) -> None:
    """Check a JPEG's segments of EXIF, each of which Pillow joins to those before it."""
    if BOUNDS_TAGS and reader.size <= MAX_EXIF_SEGMENTS * 2**16:
        return
    data = reader.getvalue()
    if _count(data, b"Exif\0\0") > (MAX_EXIF_SEGMENTS if BOUNDS_TAGS else 4):
        raise ImageError("too many segments of EXIF")
    if not BOUNDS_TAGS:
        _check_exif(data)


def _check_exif(data: bytes) -> None:
    """Check directories of EXIF in a file, whose tags Pillow before 13 reads even if they overlap."""
    for heads, head in enumerate(_EXIF_HEAD.finditer(data)):
        if heads >= MAX_EXIF_SEGMENTS:
            raise ImageError("too many directories of EXIF")
        exif = data[head.start() :]
        try:
            entries = _read_directory(Reader(exif), exif[:16], "<" if exif[:2] == b"II" else ">")
        except struct.error:
            continue
        _check_overlap(entries, len(exif))


def _check_chunks(reader: Reader) -> None:
    """Check a PNG's chunks: Pillow inflates each compressed text or profile."""
    reader.seek(8)
    compressed = 0
    while len(header := reader.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        compressed += kind in (b"iCCP", b"zTXt", b"iTXt")
        if compressed > MAX_COMPRESSED_CHUNKS:
            raise ImageError(f"more than {MAX_COMPRESSED_CHUNKS} compressed texts and profiles")
        reader.seek(length + 4, 1)


def _check_directory(reader: Reader, head: bytes, max_pixels: int) -> None:
    """Check a TIFF's first directory: the bytes of its values, its strips or tiles, and the scans in them."""
    order = "<" if head[:2] == b"II" else ">"
    entries = _read_directory(reader, head, order)
    _check_overlap(entries, reader.size)
    tags = {tag: (kind, count, value) for tag, kind, count, value in entries}
    # Pillow takes the last of two, and libtiff the first.
    if sum(entry[0] in _STRUCTURE for entry in entries) > len(_STRUCTURE & tags.keys()):
        raise ImageError("a tag of the TIFF occurs twice")
    strips = max(_length(tags, _STRIP_OFFSETS), _length(tags, _TILE_OFFSETS))
    if strips > MAX_STRIPS:
        raise ImageError(f"more than {MAX_STRIPS} strips or tiles")
    if _TILE_OFFSETS in tags:
        _check_tiles(tags, order, max_pixels)
    if _value(tags, _COMPRESSION, order) in _JPEG_IN_TIFF:
        scans = _count(reader.getvalue(), b"\xff\xda")
        pixels = _value(tags, _WIDTH, order) * _value(tags, _HEIGHT, order)
        counts = _TILE_COUNTS if _TILE_OFFSETS in tags else _STRIP_COUNTS
        # If no two strips share bytes, no two share a scan.
        if sum(_values(reader, tags, counts, order)) <= reader.size:
            pixels //= max(1, strips)
        if scans * pixels > MAX_SCANS * max_pixels:
            raise ImageError(f"{scans} JPEG scans in {strips} strips or tiles, too many for its size")


def _check_overlap(entries: list[tuple[int, int, int, bytes]], size: int) -> None:
    """Check the values that lie within a file of `size` bytes; Pillow ignores others."""
    lengths = (_TYPE_BYTES.get(kind, 1) * count for _, kind, count, _ in entries)
    if sum(length for length in lengths if length <= size) > 2 * size + 2**16:
        raise ImageError("the values of the tags overlap")


def _check_tiles(tags: Tags, order: str, max_pixels: int) -> None:
    """Check the pixels of a TIFF's tiles, which are decoded whole even if they reach beyond the image."""
    width, height = (max(1, _value(tags, tag, order)) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    check_pixels((width, height), max_pixels)
    columns = -(-_value(tags, _WIDTH, order) // width)
    rows = -(-_value(tags, _HEIGHT, order) // height)
    if columns * rows * width * height > MAX_TILED * max_pixels:
        raise ImageError(f"{columns * rows} tiles of {width} x {height} pixels, far more than the image")


def _read_directory(reader: Reader, head: bytes, order: str) -> list[tuple[int, int, int, bytes]]:
    """Return the entries of the first directory: tag, type, count, and value or the value's offset."""
    if head[2:3] == b"+":
        (start,) = struct.unpack(f"{order}Q", head[8:16])
        count_format = "Q"
        entry_format = "HHQ8s"
    else:
        (start,) = struct.unpack(f"{order}I", head[4:8])
        count_format = "H"
        entry_format = "HHI4s"
    reader.seek(start)
    (count,) = struct.unpack(order + count_format, reader.read(struct.calcsize(order + count_format)))
    size = struct.calcsize(order + entry_format)
    entries = reader.read(min(count, 2**16) * size)
    whole = entries[: len(entries) // size * size]
    return list(struct.iter_unpack(order + entry_format, whole))


def _length(tags: Tags, tag: int) -> int:
    """Return the number of a tag's values."""
    return tags[tag][1] if tag in tags else 0


def _value(tags: Tags, tag: int, order: str) -> int:
    """Return the first value of a tag with few values; 0 if the tag is missing."""
    kind, _, value = tags.get(tag, (0, 0, b""))
    return int(struct.unpack_from(order + _CODES[kind], value)[0]) if kind in _CODES else 0


def _values(reader: Reader, tags: Tags, tag: int, order: str) -> tuple[int, ...]:
    """Return all values of a tag."""
    kind, count, value = tags.get(tag, (0, 0, b""))
    values = f"{order}{count}{_CODES.get(kind, 'B')}"
    size = struct.calcsize(values)
    if size > len(value):
        reader.seek(int.from_bytes(value, "little" if order == "<" else "big"))
        value = reader.read(size)
    return struct.unpack_from(values, value)
