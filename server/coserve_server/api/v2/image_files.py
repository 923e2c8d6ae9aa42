"""Reads image files from the elements of a BYTES tensor, which `/v2` and gRPC take in place of FP32.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import struct
from collections.abc import Sequence

from coserve_server.api.requests.base64_images import decode_base64
from coserve_server.api.requests.long_texts import LongTexts
from coserve_server.errors import InvalidParametersError
from coserve_server.pipeline.preparation import EncodedImage

BYTES = "BYTES"
_LENGTH = struct.Struct("<I")


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Check the shape of an input of image files.

    Raises:
        InvalidParametersError: it is neither `[N]` nor `[N, 1]`, or N is less than 1.
    """
    if list(shape[1:]) not in ([], [1]) or not shape or shape[0] < 1:
        raise InvalidParametersError(
            f"input {name!r} has shape {shape[:9]}; image files take [N] or [N, 1] with N at least 1"
        )


def split_elements(name: str, count: int, data: bytes) -> list[EncodedImage]:
    """Return the elements of a binary tensor: each is its length in four bytes, and then an image file.

    Raises:
        InvalidParametersError: the data is not that many elements.
    """
    files: list[EncodedImage] = []
    at = 0
    while len(files) < count and at + _LENGTH.size <= len(data):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(data, at)[0]
        files.append(EncodedImage(data[begin:at]))
    if len(files) != count or at != len(data):
        raise InvalidParametersError(
            f"input {name!r}: the data is not {count} elements, each of four bytes for its length and then "
            "an image file"
        )
    return files


def split_sizes(name: str, sizes: Sequence[int], count: int, data: bytes) -> list[EncodedImage]:
    """Return image files that follow each other, as OpenVINO Model Server's clients send them.

    Args:
        sizes: their sizes, which add up to the data's.

    Raises:
        InvalidParametersError: there are not that many sizes.
    """
    if len(sizes) != count:
        raise InvalidParametersError(
            f"input {name!r}: {count} image files need as many sizes in binary_data_size, not {len(sizes)}"
        )
    files = []
    at = 0
    for size in sizes:
        files.append(EncodedImage(data[at : at + size]))
        at += size
    return files


def decode_texts(
    name: str, count: int, texts: Sequence[object] | None, long_texts: LongTexts
) -> list[EncodedImage]:
    """Return the image files that JSON holds in base64.

    Args:
        long_texts: those that were cut out of the JSON.

    Raises:
        InvalidParametersError: there are not that many texts.
        BadImageError: a text is not base64.
    """
    if texts is None or len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise InvalidParametersError(
            f"input {name!r}: {count} image files need binary_data_size, or data of as many texts in base64"
        )
    return [
        EncodedImage(decode_base64(long_texts.read(str(text)), index)) for index, text in enumerate(texts)
    ]
