"""Write TIFFs that Pillow does not write, and know which it reads."""

import struct
import zlib

import numpy as np
import PIL

YCBCR = int(PIL.__version__.split(".")[0]) >= 13
"""Whether Pillow reads uncompressed YCbCr TIFFs; older ones refuse them as truncated."""
TYPES = {"H": 3, "I": 4}


def tiff(
    tags: dict[int, tuple[str, list[int]]],
    pixels: bytes,
    order: str = "<",
    *,
    strips: int = 1,
    offsets: int = 273,
) -> bytes:
    """A TIFF with these tags, each a format of `struct` with values, and a strip of pixels at its end.

    Args:
        strips: how many strips there are, each of which is all of `pixels`.
        offsets: the tag of the offsets: 273 of strips, 324 of tiles.
    """
    counts = 279 if offsets == 273 else 325
    tags = dict(sorted({**tags, offsets: ("I", [0] * strips), counts: ("I", [len(pixels)] * strips)}.items()))
    blob_at = 8 + 2 + 12 * len(tags) + 4
    blob = b""
    for kind, values in tags.values():
        if struct.calcsize(kind) * len(values) > 4:
            blob += struct.pack(f"{order}{len(values)}{kind}", *values)
    tags[offsets] = ("I", [blob_at + len(blob)] * strips)
    entries = b""
    blob = b""
    for tag, (kind, values) in tags.items():
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            where = struct.pack(f"{order}I", blob_at + len(blob))
            blob += packed
        else:
            where = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, TYPES[kind], len(values)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + blob + pixels


def grey_tiff(
    pixels: np.ndarray, bits: int, *, white_is_zero: bool = False, sample_format: int = 1, order: str = "<"
) -> bytes:
    """A grey TIFF of samples `[H, W]` that are packed in `bits` each."""
    height, width = pixels.shape
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits]), 259: ("H", [1]),
        262: ("H", [0 if white_is_zero else 1]), 277: ("H", [1]), 278: ("I", [height]),
        339: ("H", [sample_format]),
    }  # fmt: skip
    return tiff(tags, pack(pixels, bits, order), order)


def pack(pixels: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples, each row filled up to whole bytes."""
    if pixels.dtype == np.float32:
        return pixels.astype(f"{order}f4").tobytes()
    if bits in (8, 16, 32):
        return (pixels.astype(np.int64) % 2**bits).astype(f"{order}u{bits // 8}").tobytes()
    digits = (pixels[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(pixels), -1).astype(np.uint8)
    return np.packbits(digits, axis=1).tobytes()


def many_strips(count: int) -> bytes:
    return tiff(
        {
            256: ("I", [4]), 257: ("I", [4]), 258: ("H", [8]), 259: ("H", [1]), 262: ("H", [1]),
            277: ("H", [1]), 278: ("I", [1]),
        },
        bytes(16), strips=count,
    )  # fmt: skip


def huge_tile(side: int) -> bytes:
    pixels = zlib.compress(bytes(side * side), 9)
    return tiff(
        {
            256: ("I", [10]), 257: ("I", [10]), 258: ("H", [8]), 259: ("H", [8]), 262: ("H", [1]),
            277: ("H", [1]), 322: ("I", [side]), 323: ("I", [side]),
        },
        pixels, offsets=324,
    )  # fmt: skip


def thin_tiles() -> bytes:
    """A row of a hundred pixels in tiles of 16 x 624: each is within the limits, all together are not."""
    pixels = zlib.compress(bytes(16 * 624), 9)
    return tiff(
        {
            256: ("I", [100]), 257: ("I", [1]), 258: ("H", [8]), 259: ("H", [8]), 262: ("H", [1]),
            277: ("H", [1]), 322: ("I", [16]), 323: ("I", [624]),
        },
        pixels, offsets=324, strips=7,
    )  # fmt: skip


def overlapping_tags(count: int) -> bytes:
    """Every tag's value is the whole file."""
    entries = b"".join(struct.pack("<HHII", 300 + i, 1, 12 * count, 0) for i in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)
