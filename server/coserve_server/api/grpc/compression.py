"""Decompresses messages within the limit on their size.

gRPC before 1.83.1 checks the size only after it has decompressed a message.
"""

import asyncio

from coserve_server.api.requests.compression import decompress


async def decompress_message(data: bytes, max_bytes: int) -> bytes:
    """Return a message without its compression, if it has one.

    Args:
        max_bytes: limit on the size after decompression.

    Raises:
        BadBodyError: the compressed data is broken.
        BodyTooLargeError: the decompressed message is too large.
    """
    encoding = find_encoding(data)
    if encoding is None:
        return data
    return await asyncio.to_thread(decompress, data, encoding, max_bytes)


def find_encoding(data: bytes) -> str | None:
    """Return how a message is compressed, by its first bytes: gRPC does not pass its flag on.

    No message of the services begins like this: 0x1f is not a valid tag, and they lack field 15, 0x78.
    """
    if data[:2] == b"\x1f\x8b":
        return "gzip"
    # RFC 1950, section 2.2: deflate with a window of 32 KiB, and a checksum of the two bytes.
    if data[:1] == b"\x78" and int.from_bytes(data[:2], "big") % 31 == 0:
        return "deflate"
    return None
