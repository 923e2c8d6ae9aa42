"""Many images in many requests: how to divide them, and what became of each image."""

import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from coserve_client.errors import CoserveError, InputError, RejectedError
from coserve_client.images import Image, Source
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


Asking = Generator[list[Source], "Reply | CoserveError", list[Outcome]]


def images_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The image files of a folder and its subfolders, sorted by path; names are read folder by folder.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"cannot read {os.fsdecode(folder)}: {error.strerror or error}") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from images_in(entry.path)
        elif Path(entry.name).suffix.lower() in SUFFIXES and (entry.is_file() or _dangles(entry)):
            yield Path(entry.path)


def _dangles(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a link to nothing, which whoever reads it says."""
    return entry.is_symlink() and not Path(entry.path).exists()


def batches(sources: Iterable[Source], batch_size: int) -> Iterator[list[Source]]:
    """Runs of at most `batch_size` images and `BATCH_BYTES`; a larger image is a run of its own."""
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


def asking(batch: list[Source]) -> Asking:
    """Yields what to ask for, is sent the answer, and returns the outcomes.

    The server rejects a request as a whole, so a rejected batch is asked for again image by image.

    Raises:
        CoserveError: the answer was an error that says nothing of the images.
    """
    answer = yield batch
    if isinstance(answer, Reply):
        pairs = zip(batch, answer.results, strict=True)
        return [Outcome(source, result, answer) for source, result in pairs]
    if not isinstance(answer, (InputError, RejectedError)):
        raise answer
    if len(batch) == 1:
        return [Outcome(batch[0], error=answer)]
    outcomes: list[Outcome] = []
    for source in batch:
        outcomes += yield from asking([source])
    return outcomes


def _size(source: Source) -> int:
    """Bytes of an image; 0 where only reading it could tell."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, Image):
        return len(source.data)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return path.stat().st_size if path.is_file() else 0
    return 0
