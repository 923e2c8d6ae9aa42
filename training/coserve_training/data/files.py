"""Find labelled images: `<split>/<class>/<image>` in folders and zips, and ImageNet's `val/<image>`."""

import os
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from coserve_images.formats import OWN_SUFFIXES
from coserve_training.data.passed_over import PassedOver, is_litter
from coserve_training.data.zips import Zip, is_zip
from coserve_training.errors import DataError

SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
"""Splits by folder name."""
FLAT_SPLITS = SPLITS.keys() - {"train", "test"}
"""Folders that may hold images outside class folders, as in ImageNet, whose test images have no labels."""
TRUTH_FILES = frozenset({"LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"})
"""Files with the classes of ImageNet's validation images: Kaggle's, and two of the development kit."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, or a file in a zip.

    Attributes:
        path: the path; in a zip, with slashes.
        archive: the zip, if it lies in one.
        member: its name in the zip.
    """

    path: str
    archive: Zip | None = None
    member: str = ""

    @property
    def name(self) -> str:
        """Name for messages: one printable line."""
        name = self.path if self.archive is None else f"{self.archive.path}:{self.path}"
        return name if name.isprintable() else ascii(name)

    def open(self) -> IO[bytes]:
        """Open for reading."""
        if self.archive is None:
            return Path(self.path).open("rb")
        return BytesIO(self.archive.opened().read(self.member))


@dataclass
class Files:
    """The image files of a data set.

    Attributes:
        by_split: files by split, then by class name.
        unlabelled: validation images outside class folders.
        truth: files of `TRUTH_FILES`, by name.
        unreadable: the split and the name of each folder and link that cannot be read, with its reason.
        passed_over: what was not taken, by folder or zip.
    """

    by_split: dict[str, dict[str, list[StoredFile]]] = field(default_factory=dict)
    unlabelled: list[StoredFile] = field(default_factory=list)
    truth: dict[str, StoredFile] = field(default_factory=dict)
    unreadable: list[tuple[str | None, str]] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)

    def collect(self, path: Path) -> None:
        """Add the images of a folder or a zip, sorted by name.

        Raises:
            DataError: if the folder cannot be read, the zip is damaged, or no image is found.
        """
        passed_over = PassedOver(str(path))
        self.passed_over.append(passed_over)
        found = False
        for parts, file in list_entries(path, passed_over, self.unreadable):
            found |= self._add(parts, file, passed_over, base=1 if path.is_dir() else 0)
        if not found:
            first_unreadable = [name for _, name in self.unreadable[:1]]
            reasons = "; ".join(filter(None, [passed_over.summary(), *first_unreadable]))
            raise DataError(
                f"{path}: no image found; expected train/<class>/<image> and test/<class>/<image> (or val/)"
                + (f"; not taken: {reasons}" if reasons else "")
            )

    def _add(
        self, parts: tuple[str, ...], file: StoredFile | None, passed_over: PassedOver, base: int
    ) -> bool:
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
            passed_over.add_file(name)
            return False
        split = split_folder(parts)
        if split is not None:
            self._of_class(parts[split], parts[split + 1]).append(file)
            passed_over.nested += split < len(parts) - 3
            return True
        if len(parts) >= 2 and parts[-2] in FLAT_SPLITS:
            self.unlabelled.append(file)
            return True
        passed_over.add_misplaced(len(parts) - 1 - base)
        return False

    def _of_class(self, folder: str, label: str) -> list[StoredFile]:
        # Some systems store é as one character, others as two.
        label = unicodedata.normalize("NFC", label)
        if not label.isprintable():
            raise DataError(f"the class folder {folder}/{label!a} has a name that cannot be printed")
        return self.by_split.setdefault(SPLITS[folder], {}).setdefault(label, [])


Entries = Iterator[tuple[tuple[str, ...], StoredFile | None]]
"""The parts of each path, and its file; None for a folder."""


def list_entries(path: Path, passed_over: PassedOver, unreadable: list[tuple[str | None, str]]) -> Entries:
    """List a folder, whose own name is the first part of each path, or a zip.

    Args:
        path: the folder or zip.
        passed_over: counts what is left out.
        unreadable: is given what cannot be read, as `Files.unreadable`.

    Raises:
        DataError: if the folder cannot be read, the zip is damaged, or it is neither.
    """
    if path.is_dir():
        walk = _Walk(passed_over, unreadable)
        return walk.entries(str(path), ((Path.cwd() / path).name,), frozenset())
    if is_zip(path):
        return _list_zip(path, passed_over)
    raise DataError(f"{path}: {_describe_file(path)}")


def split_folder(parts: tuple[str, ...]) -> int | None:
    """Return the index of the split's folder in an image's path; None for an image outside class folders.

    The folder right above the class counts; else the last one above, if the image lies in a subfolder of its
    class. ImageNet's unlabelled images lie right in a split's folder.
    """
    if len(parts) >= 3 and parts[-3] in SPLITS:
        return len(parts) - 3
    if len(parts) >= 2 and parts[-2] in SPLITS:
        return None
    return next((i for i in range(len(parts) - 4, -1, -1) if parts[i] in SPLITS), None)


def _describe_file(path: Path) -> str:
    """Say why a file cannot be a data set."""
    try:
        if path.is_file() and tarfile.is_tarfile(path):
            return "a tar archive without the official CIFAR files; unpack it, or make a zip of its content"
    except (OSError, EOFError) as error:
        return f"cannot be read ({error})"
    if path.suffix.lower() == ".zip":
        return "damaged zip"
    return "neither a folder, a zip, nor an official CIFAR or SVHN file"


@dataclass
class _Walk:
    """Walks through a folder, and notes what it leaves out."""

    passed_over: PassedOver
    unreadable: list[tuple[str | None, str]]

    def entries(self, folder: str, parts: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Entries:
        """Follow symbolic links but no loops: never enter a folder from within it.

        Raises:
            DataError: if the outermost folder cannot be read.
        """
        try:
            status = Path(folder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                self.passed_over.others["links to a folder above them"] += 1
                return
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not above:
                raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
            self._note_unreadable(folder, parts, error)
            return
        for entry in ordered:
            if is_litter(entry.name):
                self.passed_over.litter[entry.name] += 1
                continue
            inside = (*parts, entry.name)
            try:
                if entry.is_dir():
                    yield inside, None
                    yield from self.entries(entry.path, inside, above | {identity})
                elif Path(entry.path).stat() and entry.is_file():
                    yield inside, StoredFile(entry.path)
                else:
                    self.passed_over.others["pipes, sockets or devices"] += 1
            except OSError as error:  # a broken link, or a link to itself
                self._note_unreadable(entry.path, inside, error)

    def _note_unreadable(self, path: str, parts: tuple[str, ...], error: OSError) -> None:
        suffix = PurePosixPath(parts[-1]).suffix.lower()
        if suffix and suffix not in OWN_SUFFIXES:
            self.passed_over.others["entries that cannot be read"] += 1
            return
        split = next((SPLITS[part] for part in reversed(parts) if part in SPLITS), None)
        reason = (error.strerror or str(error)).lower()
        self.unreadable.append((split, f"{StoredFile(path).name} ({reason})"))


def _list_zip(path: Path, passed_over: PassedOver) -> Entries:
    archive = Zip(str(path))
    for name, member in archive.entries():
        parts = PurePosixPath(name).parts
        hidden = next(filter(is_litter, parts), None)
        if hidden is not None:
            passed_over.litter[hidden] += 1
        elif parts:
            yield parts, None if name.endswith("/") else StoredFile(name, archive, member)
