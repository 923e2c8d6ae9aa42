"""Split many images into requests, and report the outcome of each image."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import BinaryIO

from coserve_client.archives import ZippedFile
from coserve_client.errors import CoserveError, InputError
from coserve_client.images import Image, Source, read_image
from coserve_client.replies import Reply, Result

BATCH_BYTES = 16 * 2**20
"""Image bytes per request: half of the server's default limit for a body."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one image: either its result, with the reply that contained it, or its error."""

    source: Source
    result: Result | None = None
    reply: Reply | None = None
    error: CoserveError | None = None


def check_limits(batch_size: int, concurrency: int) -> None:
    """Check that batches and concurrency are large enough to send anything.

    Raises:
        InputError: a value is not a whole number, or below 1.
    """
    for name, value in (("batch_size", batch_size), ("concurrency", concurrency)):
        try:
            number = index(value)
        except TypeError as error:
            raise InputError(f"{name} must be a whole number, not {value!r}") from error
        if number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")


def split(sources: Iterable[Source], batch_size: int) -> Iterator[list[Source]]:
    """Split images into batches of at most `batch_size` images and `BATCH_BYTES`.

    An image that is larger, or whose size is unknown until it is read, gets a batch of its own.
    """
    batch: list[Source] = []
    total = 0
    for source in sources:
        size = _size(source)
        if batch and total + size > BATCH_BYTES:
            yield batch
            batch = []
            total = 0
        batch.append(source)
        total += size
        # Not when the next image comes, which may take long.
        if len(batch) == batch_size:
            yield batch
            batch = []
            total = 0
    if batch:
        yield batch


def pair_results(images: Iterable[Image], reply: Reply) -> list[Outcome]:
    """Return the outcomes of the images that a reply answers, in its order."""
    return [Outcome(image, result, reply) for image, result in zip(images, reply.results, strict=True)]


def read_batch(batch: list[Source]) -> list[Image | InputError]:
    """Read each image of a batch once, since pipes and open files cannot be read again.

    Returns:
        Per image, its content or the reason why it cannot be read.
    """
    return [_read_or_error(source, index) for index, source in enumerate(batch)]


def _read_or_error(source: Source, index: int) -> Image | InputError:
    try:
        return read_image(source, index)
    except InputError as error:
        return error


def merge_outcomes(
    batch: list[Source], images: list[Image | InputError], classified: Iterable[Outcome]
) -> list[Outcome]:
    """Return the outcome of every image of a batch.

    Args:
        batch: the images as the caller gave them.
        images: the result of `read_batch`.
        classified: the outcomes of the readable images, in order.
    """
    readable = iter(classified)
    return [
        Outcome(source, error=image)
        if isinstance(image, InputError)
        else replace(next(readable), source=source)
        for source, image in zip(batch, images, strict=True)
    ]


def _size(source: Source) -> int:
    """Return an image's size in bytes, or `BATCH_BYTES` if only reading it would tell."""
    if isinstance(source, ZippedFile):
        return source.size
    try:
        if isinstance(source, Image):
            return memoryview(source.data).nbytes
        if isinstance(source, (bytes, bytearray, memoryview)):
            return memoryview(source).nbytes
        if isinstance(source, (str, os.PathLike)):
            status = Path(os.fsdecode(source)).stat()
            return status.st_size if stat.S_ISREG(status.st_mode) else BATCH_BYTES
        return _remaining_bytes(source)
    # Whatever is wrong, reading the image reports it as the outcome of that image.
    except Exception:
        return BATCH_BYTES


def _remaining_bytes(file: BinaryIO) -> int:
    position = file.tell()
    file.seek(0, os.SEEK_END)
    end = file.tell()
    file.seek(position)
    return end - position
