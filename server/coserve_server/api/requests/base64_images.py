"""Decodes images that JSON carries as text."""

import base64
import binascii
import re
from collections.abc import Iterator

from coserve_server.errors import BadImageError

EXAMPLE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC"
"""A PNG of one red pixel, for requests in the OpenAPI document that can be sent as they are."""

_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_PIECE = 2**20
_WHITE_SPACE = b" \t\r\n"


def decode_base64(text: str, index: int) -> bytes:
    """Return the bytes of base64 (RFC 4648, section 4), or of a data URI that holds it (RFC 2397).

    White space is ignored: many encoders break lines, as MIME has it.

    Args:
        index: the image's position, for the error message.

    Raises:
        BadImageError: the text is neither.
    """
    text = text.lstrip()
    if text[:5].lower() == "data:":
        prefix = _DATA_URI.match(text)
        if prefix is None:
            raise BadImageError(
                f"image {index}: the data URI is not base64; it must begin like data:image/png;base64,"
            )
        text = text[prefix.end() :]
    try:
        return b"".join(_decode(text))
    except (binascii.Error, ValueError) as error:
        fault = "it has other characters than ASCII" if isinstance(error, UnicodeError) else error
        raise BadImageError(f"image {index}: not base64: {fault}") from error


def _decode(text: str) -> Iterator[bytes]:
    """Decode in pieces, since decoding holds the GIL."""
    left = b""
    for begin in range(0, len(text), _PIECE):
        data = left + text[begin : begin + _PIECE].encode("ascii").translate(None, _WHITE_SPACE)
        # Four characters are three bytes; the end, with its padding, is decoded last.
        whole = max(0, len(data) - 1) // 4 * 4
        if b"=" in data[:whole]:
            raise binascii.Error("Excess data after padding")
        yield base64.b64decode(data[:whole], validate=True)
        left = data[whole:]
    yield base64.b64decode(left, validate=True)
