"""Reads the images to send."""

import mimetypes
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coserve_client import InputError
from coserve_client.images import images_in

MAX_IMAGES = 100
"""Images that are kept in memory and sent in turn; more would make no difference to a server."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file.

    Attributes:
        name: path, for messages.
        kind: content type.
        data: the bytes of the file.
    """

    name: str
    kind: str
    data: bytes


def read_images(paths: Iterable[Path]) -> list[EncodedImage]:
    """Read image files, and those in folders and their subfolders.

    If there are more than `MAX_IMAGES` images, that many are read, evenly spaced.

    Raises:
        InputError: an image cannot be read, or a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        found = list(images_in(path)) if path.is_dir() else [path]
        if not found:
            raise InputError(f"no images in {path}")
        files += found
    chosen = (
        [files[index * len(files) // MAX_IMAGES] for index in range(MAX_IMAGES)]
        if len(files) > MAX_IMAGES
        else files
    )
    return [_read(file) for file in chosen]


def _read(file: Path) -> EncodedImage:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    kind, _ = mimetypes.guess_type(file.name)
    # The type only tells the server that the body is an image; it detects the format from the bytes.
    return EncodedImage(str(file), kind if kind and kind.startswith("image/") else "image/*", data)
