"""Find labelled images: `<split>/<class>/<image>` in folders and zips, and ImageNet's `val/<image>`."""

import os
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from coserve_images.formats import OWN_SUFFIXES
from coserve_training.errors import DataError

SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
"""Splits by folder name. Validation images are test images too."""
FLAT_SPLITS = SPLITS.keys() - {"train", "test"}
"""Folders that may hold images outside class folders, as in ImageNet, whose test images have no labels."""
TRUTH_FILES = frozenset({"LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"})
"""Files with the classes of ImageNet's validation images: Kaggle's, and two of the development kit."""


class Zip:
    """A zip file that each process opens for itself.

    If it were opened before a fork, all processes would share one position in the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._process = 0

    def opened(self) -> zipfile.ZipFile:
        """Return the zip file, opened by this process."""
        if self._process != os.getpid():
            self._zip = zipfile.ZipFile(self.path)
            self._process = os.getpid()
        return self._zip

    def __reduce__(self) -> tuple[type["Zip"], tuple[str]]:
        return Zip, (self.path,)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, or a file in a zip."""

    path: str
    archive: Zip | None = None

    @property
    def name(self) -> str:
        """Name for messages: one printable line."""
        name = self.path if self.archive is None else f"{self.archive.path}:{self.path}"
        return name if name.isprintable() else ascii(name)

    def open(self) -> IO[bytes]:
        """Open for reading."""
        if self.archive is None:
            return Path(self.path).open("rb")
        return BytesIO(self.archive.opened().read(self.path))


@dataclass
class Files:
    """The image files of a data set.

    Attributes:
        by_split: files by split, then by class name.
        unlabelled: validation images outside class folders.
        truth: files of `TRUTH_FILES`, by name.
    """

    by_split: dict[str, dict[str, list[StoredFile]]] = field(default_factory=dict)
    unlabelled: list[StoredFile] = field(default_factory=list)
    truth: dict[str, StoredFile] = field(default_factory=dict)

    def collect(self, path: Path) -> None:
        """Add the images of a folder or a zip, sorted by name.

        Raises:
            DataError: if a folder cannot be read, a zip is damaged, or no image is found.
        """
        found = False
        if path.is_dir():
            for parts, file in _walk(str(path), ((Path.cwd() / path).name,), frozenset()):
                found |= self._add(parts, file)
        elif zipfile.is_zipfile(path):
            for parts, file in _list_zip(path):
                found |= self._add(parts, file)
        elif path.suffix.lower() == ".zip":
            raise DataError(f"{path}: damaged zip")
        else:
            raise DataError(f"{path}: neither a folder, a zip, nor an official CIFAR or SVHN file")
        if not found:
            raise DataError(
                f"{path}: no image found; expected train/<class>/<image> and test/<class>/<image> (or val/)"
            )

    def _add(self, parts: tuple[str, ...], file: StoredFile | None) -> bool:
        """Add an image, a truth file or a class folder (`file` is None); return whether a file was added."""
        if file is None:
            if len(parts) >= 2 and parts[-2] in SPLITS and parts[-1] not in SPLITS:
                self._of_class(parts[-2], parts[-1])
            return False
        name = parts[-1]
        if name in TRUTH_FILES:
            self.truth[name] = file
            return True
        if PurePosixPath(name).suffix.lower() not in OWN_SUFFIXES:
            return False
        if len(parts) >= 3 and parts[-3] in SPLITS:
            self._of_class(parts[-3], parts[-2]).append(file)
            return True
        if len(parts) >= 2 and parts[-2] in FLAT_SPLITS:
            self.unlabelled.append(file)
            return True
        return False

    def _of_class(self, folder: str, label: str) -> list[StoredFile]:
        # Some systems store é as one character, others as two.
        label = unicodedata.normalize("NFC", label)
        if not label.isprintable():
            raise DataError(f"the class folder {folder}/{label!a} has a name that cannot be printed")
        return self.by_split.setdefault(SPLITS[folder], {}).setdefault(label, [])


Entries = Iterator[tuple[tuple[str, ...], StoredFile | None]]
"""The parts of each path, and its file; None for a folder."""


def _walk(folder: str, parts: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Entries:
    """Walk through a folder, following symbolic links but no loops: never enter a folder from within it."""
    try:
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in ordered:
        if _is_hidden(entry.name):
            continue
        inside = (*parts, entry.name)
        if _is_folder(entry):
            yield inside, None
            yield from _walk(entry.path, inside, above | {identity})
        elif _is_file(entry):
            yield inside, StoredFile(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    # A broken link counts, so that it is reported as an image that cannot be read.
    return Path(entry.path).is_file() or not Path(entry.path).exists()


def _list_zip(path: Path) -> Entries:
    archive = Zip(str(path))
    try:
        names = sorted(archive.opened().namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{path}: damaged zip ({error})") from error
    for name in names:
        parts = PurePosixPath(name).parts
        if not any(map(_is_hidden, parts)):
            yield parts, None if name.endswith("/") else StoredFile(name, archive)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
