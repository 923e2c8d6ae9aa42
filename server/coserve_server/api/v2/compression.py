"""Decompresses request bodies (RFC 9110, section 8.4)."""

import zlib

from coserve_server.errors import BadBodyError, BodyTooLargeError, UnsupportedTypeError

# zlib's window sizes; 16 more selects the gzip format.
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo a Content-Encoding.

    Args:
        encoding: the header; None for no compression.
        max_bytes: limit on the size after decompression.

    Raises:
        UnsupportedTypeError: the encoding is unknown.
        BadBodyError: the compressed data is broken.
        BodyTooLargeError: the decompressed body is too large.
    """
    encoding = (encoding or "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in _WINDOWS:
        raise UnsupportedTypeError(f"Content-Encoding is {encoding[:40]!r}; send gzip, deflate or none")
    inflating = zlib.decompressobj(_WINDOWS[encoding])
    try:
        inflated = inflating.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadBodyError(f"the body is not {encoding}: {error}") from error
    if len(inflated) > max_bytes:
        raise BodyTooLargeError(f"the decompressed body has more than the {max_bytes} bytes allowed")
    if not inflating.eof:
        raise BadBodyError(f"the body's {encoding} data is cut off")
    if inflating.unused_data:
        raise BadBodyError(f"the body has more bytes after its {encoding} data")
    return inflated
