"""Decodes images that JSON carries as text."""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from coserve_server.errors import BadImageError

EXAMPLE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
"""A PNG of one red pixel, for requests in the OpenAPI document that can be sent as they are."""

_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_WHITE_SPACE = b" \t\r\n"


def decode_base64(pieces: Iterator[str], index: int) -> bytes:
    """Return the bytes of base64 (RFC 4648, section 4), or of a data URI that holds it (RFC 2397).

    White space is ignored: many encoders break lines, as MIME has it.

    Args:
        pieces: the text, in pieces since decoding holds the GIL. The first that is more than white space has
            the whole prefix of a data URI.
        index: the image's position, for the error message.

    Raises:
        BadImageError: the text is neither.
    """
    head = next((text for piece in pieces if (text := piece.lstrip())), "")
    if head[:5].lower() == "data:":
        prefix = _DATA_URI.match(head)
        if prefix is None:
            raise BadImageError(
                f"image {index}: the data URI is not base64; it must begin like data:image/png;base64,"
            )
        head = head[prefix.end() :]
    try:
        return b"".join(_decode(chain([head], pieces)))
    except (binascii.Error, ValueError) as error:
        fault = "it has other characters than ASCII" if isinstance(error, UnicodeError) else error
        raise BadImageError(f"image {index}: not base64: {fault}") from error


def _decode(pieces: Iterable[str]) -> Iterator[bytes]:
    left = b""
    for piece in pieces:
        data = left + piece.encode("ascii").translate(None, _WHITE_SPACE)
        # Four characters are three bytes; the end, with its padding, is decoded last.
        whole = max(0, len(data) - 1) // 4 * 4
        if b"=" in data[:whole]:
            raise binascii.Error("Excess data after padding")
        yield base64.b64decode(data[:whole], validate=True)
        left = data[whole:]
    yield base64.b64decode(left, validate=True)
