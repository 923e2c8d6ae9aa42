"""The image formats that are read, their file name suffixes, and HEIC's optional decoder."""

from functools import cache
from importlib.util import find_spec

from coserve_images.errors import ImageError

# The formats of photographs. Pillow's other decoders may start programs, read byte by byte in Python (PPM) or
# have a history of vulnerabilities, so they are not used.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
OWN_FORMATS = (*FORMATS, "PPM")
"""Formats that are read from a user's own files as well, but never from a stranger's request."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
    | {".avif", ".heic", ".heif"}
)
"""File name suffixes, in lower case, that mark an image of `FORMATS` or HEIC."""
OWN_SUFFIXES = SUFFIXES | {".ppm", ".pgm", ".pbm", ".pnm"}
"""File name suffixes, in lower case, that mark an image of `OWN_FORMATS` or HEIC."""

# Brands of an HEVC-coded image file (ISO/IEC 23008-12, annex B.4).
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with `head` is HEIC, by the brands of its first box."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    return any(head[at : at + 4] in _HEIC_BRANDS for at in (8, *range(16, length - 3, 4)))


def turns_itself(data: bytes) -> bool:
    """Return whether a HEIC file has a turn of its own, so that the EXIF orientation does not count."""
    at = data.find(b"meta")
    properties = data[at : at + int.from_bytes(data[max(at - 4, 0) : at], "big")]
    return b"irot" in properties or b"imir" in properties


@cache
def register_heic() -> None:
    """Let Pillow read HEIC.

    Raises:
        ImageError: the extra `heic` is not installed.
    """
    if find_spec("pillow_heif") is None:
        raise ImageError("HEIC needs the extra heic: pip install 'coserve[heic]'")
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
