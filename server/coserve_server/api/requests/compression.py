"""Decompresses request bodies (RFC 9110, section 8.4)."""

import zlib
from collections.abc import Mapping
from typing import Any

from coserve_server.errors import BadBodyError, BodyTooLargeError, UnsupportedTypeError

# zlib's window sizes; 16 more selects the gzip format.
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
MAX_MEMBERS = 1000
"""Limit on the members of a gzip body: empty ones would cost time without adding bytes."""
_PIECE_BYTES = 2**16

CONTENT_ENCODING: dict[str, Any] = {
    "enum": ["identity", *_WINDOWS],
    "description": "Compression of the body.",
}
"""OpenAPI's schema of the header."""


def read_encoding(headers: Mapping[str, str]) -> str | None:
    """Return the encoding of a request's body; None if it is not compressed.

    Raises:
        UnsupportedTypeError: the encoding is unknown.
    """
    encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding == "identity":
        return None
    if encoding not in _WINDOWS:
        raise UnsupportedTypeError(f"Content-Encoding is {encoding[:40]!r}; send gzip, deflate or none")
    return encoding


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress a body.

    Args:
        encoding: as `read_encoding` returns it. A gzip body may have several members (RFC 1952, 2.2).
        max_bytes: limit on the size after decompression.

    Raises:
        BadBodyError: the compressed data is broken.
        BodyTooLargeError: the decompressed body is too large.
    """
    inflating = zlib.decompressobj(_WINDOWS[encoding])
    pieces = []
    left = max_bytes
    members = 1
    # In pieces, since each member's end copies what follows it.
    for begin in range(0, len(body), _PIECE_BYTES):
        data = body[begin : begin + _PIECE_BYTES]
        while data:
            if inflating.eof:
                if encoding == "deflate":
                    raise BadBodyError("the body has more bytes after its deflate data")
                members += 1
                if members > MAX_MEMBERS:
                    raise BadBodyError(f"the body has more than {MAX_MEMBERS} gzip members")
                inflating = zlib.decompressobj(_WINDOWS[encoding])
            try:
                piece = inflating.decompress(data, left + 1)
            except zlib.error as error:
                raise BadBodyError(f"the body is not {encoding}: {error}") from error
            left -= len(piece)
            if left < 0:
                raise BodyTooLargeError(f"the decompressed body has more than the {max_bytes} bytes allowed")
            pieces.append(piece)
            data = inflating.unused_data
    if not inflating.eof:
        raise BadBodyError(f"the body's {encoding} data is cut off")
    return b"".join(pieces)
