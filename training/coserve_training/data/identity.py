"""Recognise images by their content wherever they lie, and by their name if their content was mended."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_training.data.files import StoredFile, split_folder
from coserve_training.data.split import Progress

Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
BATCH = 256
"""Images that are hashed between two reports of progress."""


@dataclass(frozen=True)
class Identities:
    """Two hashes of each image; 0 stands for none.

    Attributes:
        contents: hashes of the files' bytes, or of decoded pixels, `[N]`.
        names: hashes of the paths from the split's folder on, such as `train/cat/001.jpg`, `[N]`.
    """

    contents: Keys
    names: Keys

    def __len__(self) -> int:
        return len(self.contents)

    def select(self, mask: Mask) -> "Identities":
        """Select images by a mask `[N]`."""
        return Identities(self.contents[mask], self.names[mask])

    def join(self, other: "Identities") -> "Identities":
        """Return these images and those of `other`, each once."""
        both = np.stack(
            [np.concatenate([self.contents, other.contents]), np.concatenate([self.names, other.names])], 1
        )
        contents, names = np.unique(both, axis=0).T
        return Identities(contents, names)

    def concatenate(self, other: "Identities") -> "Identities":
        """Return these images, then those of `other`."""
        return Identities(
            np.concatenate([self.contents, other.contents]), np.concatenate([self.names, other.names])
        )

    def matches(self, other: "Identities") -> Mask:
        """Mark the images of `other` that have a content of these, `[N]`."""
        known: Mask = np.isin(other.contents, self.contents) & (other.contents != 0)
        return known

    def changed(self, present: "Identities") -> Keys:
        """Return the names of those images that no image of `present` has with the same content."""
        return self.names[~np.isin(self._pairs(), present._pairs())]

    def _pairs(self) -> Keys:
        """Hash contents and names together, `[N]`."""
        return self.contents * np.uint64(0x9E3779B97F4A7C15) + self.names

    def count_missing(self, present: "Identities") -> int:
        """Count the images whose content and name are both gone."""
        gone = ~np.isin(self.contents, present.contents) & ~np.isin(self.names, present.names)
        return len(np.unique(self.contents[gone & (self.contents != 0)]))


NONE = Identities(np.empty(0, np.uint64), np.empty(0, np.uint64))


@dataclass(frozen=True)
class Known:
    """The images of a run.

    Attributes:
        trained: those that it was trained on.
        tested: those that it was tested on, in every epoch or at its end.
        chosen: those of `tested` that only chose the best epoch and calibrated: a validation split.
    """

    trained: Identities = NONE
    tested: Identities = NONE
    chosen: Identities = NONE

    def find(self, images: Identities, by_name: bool = True) -> tuple[Mask, Mask, Mask]:
        """Mark the images that are in `trained`, `tested` and `chosen`, `[N]` each.

        Args:
            images: the images.
            by_name: recognise an unknown content by its name, for images whose files were mended: an image
                of the run that is still there is not another one of the same name.
        """
        trained = self.trained.matches(images)
        tested = self.tested.matches(images)
        chosen = self.chosen.matches(images)
        if by_name:
            unknown = ~trained & ~tested & (images.names != 0)
            trained |= unknown & np.isin(images.names, self.trained.changed(images))
            tested |= unknown & np.isin(images.names, self.tested.changed(images))
            chosen |= unknown & np.isin(images.names, self.chosen.changed(images))
        return trained, tested, chosen


def identify(sources: npt.NDArray[Any], workers: int = 0, progress: Progress | None = None) -> Identities:
    """Hash images.

    Args:
        sources: `StoredFile`s `[N]`, or images `[N, H, W, 3]` uint8. Images of one array have no names.
        workers: number of threads that read files.
        progress: called with the number of images.
    """
    if sources.dtype != object:
        return Identities(
            np.array([_hash(image.tobytes()) for image in sources], np.uint64),
            np.zeros(len(sources), np.uint64),
        )
    contents = list[int]()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(sources), BATCH):
            contents += pool.map(_hash_file, sources[start : start + BATCH])
            if progress is not None:
                progress("reading images", len(contents), len(sources))
    names = [_hash(_place(file.path).encode("utf-8", "surrogateescape")) for file in sources]
    return Identities(np.array(contents, np.uint64), np.array(names, np.uint64))


def _place(path: str) -> str:
    """Return a path from the split's folder on; without one, its last three parts."""
    parts = PurePosixPath(path).parts
    start = split_folder(parts)
    return "/".join(parts[-3:] if start is None else parts[start:])


def name_image(sources: npt.NDArray[Any], index: int) -> str:
    """Return an image's name for messages."""
    return str(sources[index].name) if sources.dtype == object else f"image {index}"


def _hash_file(file: StoredFile) -> int:
    try:
        with file.open() as stream:
            return _hash(stream.read())
    # An unreadable file has no content. Zips raise many types of errors.
    except Exception:
        return 0


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") or 1
