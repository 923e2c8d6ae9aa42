"""Many images in many requests: how to divide them, and what became of each image."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from coserve_client.errors import CoserveError, InputError
from coserve_client.images import Image, Source, read_image
from coserve_client.replies import Reply, Result

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
BATCH_BYTES = 16 * 2**20
"""In one request; half of what a server accepts unless told otherwise."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a result, and the reply it was part of, or an error of its own."""

    source: Source
    result: Result | None = None
    reply: Reply | None = None
    error: CoserveError | None = None


def images_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The image files of a folder and its subfolders, sorted by path; names are read folder by folder.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {os.fsdecode(folder)}: {reason}") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from images_in(entry.path)
        elif Path(entry.name).suffix.lower() in SUFFIXES and (entry.is_file() or _dangles(entry)):
            yield Path(entry.path)


def _dangles(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a link to nothing, which whoever reads it says."""
    return entry.is_symlink() and not Path(entry.path).exists()


def check(batch_size: int, concurrency: int) -> None:
    """Refuse what would never ask.

    Raises:
        InputError: one of them is below 1.
    """
    for name, value in (("batch_size", batch_size), ("concurrency", concurrency)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


def batches(sources: Iterable[Source], batch_size: int) -> Iterator[list[Source]]:
    """Runs of at most `batch_size` images and `BATCH_BYTES`; one that is larger, or cannot say, is alone."""
    batch: list[Source] = []
    total = 0
    for source in sources:
        size = _size(source)
        if batch and (len(batch) == batch_size or total + size > BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(source)
        total += size
    if batch:
        yield batch


def read(batch: list[Source]) -> list[Image | InputError]:
    """Every image of a batch, or why it cannot be read; done once, because pipes and open files end."""
    return [_read(source, index) for index, source in enumerate(batch)]


def _read(source: Source, index: int) -> Image | InputError:
    try:
        return read_image(source, index)
    except InputError as error:
        return error


def outcomes(
    batch: list[Source], images: list[Image | InputError], answered: Iterable[Outcome]
) -> list[Outcome]:
    """The outcomes of a batch that was `read`, where `answered` are those of its readable images."""
    answers = iter(answered)
    return [
        Outcome(source, error=image)
        if isinstance(image, InputError)
        else replace(next(answers), source=source)
        for source, image in zip(batch, images, strict=True)
    ]


def _size(source: Source) -> int:
    """Bytes of an image; `BATCH_BYTES` where only reading it could tell."""
    if isinstance(source, Image):
        return len(source.data)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source).nbytes
    try:
        if isinstance(source, (str, os.PathLike)):
            status = Path(source).stat()
            return status.st_size if stat.S_ISREG(status.st_mode) else BATCH_BYTES
        return _left(source)
    except (AttributeError, OSError, ValueError):
        return BATCH_BYTES


def _left(file: BinaryIO) -> int:
    here = file.tell()
    file.seek(0, os.SEEK_END)
    end = file.tell()
    file.seek(here)
    return end - here
