"""Find out how a photograph was held, and turn it upright."""

import re
import struct

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""
ORIENTATION = 0x0112
"""EXIF's tag of the orientation (CIPA DC-008)."""
MAX_ENTRIES = 1000
"""Limit for the entries that are searched; cameras write some twenty."""

TRANSPOSED = (5, 6, 7, 8)
"""Orientations that exchange width and height, before the mirroring of others."""
MIRRORED = (2, 3, 6, 7)
FLIPPED = (3, 4, 7, 8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# The entry's type (byte, short, long) and how to read its value.
_TYPES = {1: "B", 3: "H", 4: "I"}


def turn_upright(image: Image.Image) -> Image.Image:
    """Return a decoded image as it is to be looked at."""
    turn = _UPRIGHT.get(read_orientation(image))
    return image if turn is None else image.transpose(turn)


def turn_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Return where a box of a stored image of this width and height lies in the upright image."""
    left, top, right, bottom = box
    width, height = size
    if orientation in TRANSPOSED:
        left, top, right, bottom = top, left, bottom, right
        width, height = height, width
    if orientation in MIRRORED:
        left, right = width - right, width - left
    if orientation in FLIPPED:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def read_orientation(image: Image.Image) -> int:
    """Return the orientation, from 1 to 8, that is still to be applied to the pixels of an image.

    Damaged metadata counts as none, since viewers show such photographs. Of Pillow's parsers, some fail on it
    and some take long.
    """
    # Pillow turns TIFF upright itself.
    if image.format == "TIFF":
        return 1
    # pillow-heif takes it out of EXIF.
    if image.format == "HEIF":
        return image.info.get("original_orientation") or 1
    orientation = _find_in_exif(_exif(image.info)) or _find_in_xmp(image.info)
    return orientation if orientation in _UPRIGHT else 1


def _exif(info: dict[str | tuple[int, int], object]) -> bytes:
    exif = info.get("exif")
    if isinstance(exif, bytes):
        return exif
    # ImageMagick writes PNG's as text: a newline, a name, the length, then hexadecimal digits.
    text = info.get("Raw profile type exif")
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""
    except ValueError:
        return b""


def _find_in_exif(exif: bytes) -> int | None:
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * min(entries, MAX_ENTRIES), 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == ORIENTATION:
                if count != 1 or kind not in _TYPES:
                    return None
                return int(struct.unpack_from(order + _TYPES[kind], exif, entry + 8)[0])
    except struct.error:
        pass
    return None


def _find_in_xmp(info: dict[str | tuple[int, int], object]) -> int | None:
    xmp = info.get("xmp", info.get("XML:com.adobe.xmp"))
    if isinstance(xmp, str):
        xmp = xmp.encode()
    found = _XMP.search(xmp) if isinstance(xmp, bytes) else None
    return int(found[1]) if found else None
