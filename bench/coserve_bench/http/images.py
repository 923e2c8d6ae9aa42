"""The images that are sent."""

import mimetypes
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coserve_client import InputError
from coserve_client.images import images_in

MOST = 100
"""Images kept in memory and sent in turn; more would make no difference to a server."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file: its name for messages, its content type, its bytes."""

    name: str
    kind: str
    data: bytes


def read_images(paths: Iterable[Path]) -> list[EncodedImage]:
    """Read files, and folders with their subfolders; of more than `MOST` images, so many evenly spaced.

    Raises:
        InputError: one cannot be read, or a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        found = list(images_in(path)) if path.is_dir() else [path]
        if not found:
            raise InputError(f"no images in {path}")
        files += found
    chosen = [files[index * len(files) // MOST] for index in range(MOST)] if len(files) > MOST else files
    return [_read(file) for file in chosen]


def _read(file: Path) -> EncodedImage:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}") from error
    kind, _ = mimetypes.guess_type(file.name)
    # The server looks at the bytes alone; the type only tells it that the body is an image.
    return EncodedImage(str(file), kind if kind and kind.startswith("image/") else "image/*", data)
