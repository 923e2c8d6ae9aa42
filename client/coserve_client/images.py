"""What a caller may hand over as an image, and reading it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from coserve_client.errors import InputError


@dataclass(frozen=True)
class Image:
    """An encoded image (JPEG, PNG, …) and the file name the server will call it by."""

    data: bytes = field(repr=False)
    filename: str


Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image


def read_images(sources: Source | Iterable[Source]) -> list[Image]:
    """Read one or several images, in order; what has no name of its own is called `image_<index>`.

    Whole files are read, so that a request can be sent again.

    Raises:
        InputError: there is no image, or one cannot be read; the message names it.
    """
    if isinstance(sources, (str, os.PathLike, bytes, bytearray, memoryview, Image)) or hasattr(
        sources, "read"
    ):
        sources = [cast("Source", sources)]
    images = [read_image(source, index) for index, source in enumerate(sources)]
    if not images:
        raise InputError("no image given")
    return images


def read_image(source: Source, index: int) -> Image:
    """Read one image, the one at `index` of its request.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(source, Image):
        return Image(bytes(source.data), _sendable(source.filename))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Image(bytes(source), f"image_{index}")
    if isinstance(source, (str, os.PathLike)):
        return Image(_bytes_of(Path(source)), _sendable(Path(source).name))
    return _read_open(source, f"image_{index}")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _read_open(file: BinaryIO, default: str) -> Image:
    if not hasattr(file, "read"):
        kind = type(file).__name__
        raise InputError(f"an image is a path, bytes, a file opened in binary mode or an Image, not {kind}")
    name = getattr(file, "name", None)
    filename = _sendable(Path(name).name) if isinstance(name, str) else default
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {filename}: {error}") from error
    if not isinstance(data, bytes):
        raise InputError(f"cannot read {filename}: open it in binary mode")
    return Image(data, filename)


def _sendable(name: str) -> str:
    # File names may hold bytes that are no characters (PEP 383), which no multipart header can carry.
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
