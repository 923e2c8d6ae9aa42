"""A folder that collects images for labelling, without overwriting anything."""

import hashlib
import os
import re
import tempfile
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from coserve_client.errors import InputError
from coserve_client.images import Image

UNLABELLED = "unlabelled"
"""The folder of new images. It is not `train`, `val` or `test`, so that nobody trains on unchecked labels."""
PARTIAL = ".part"
"""Suffix of files that are being written."""


def class_folders(labels: Sequence[str]) -> list[str]:
    """Return a folder name for each class: its label, if that can be one and no other class has it."""
    names = [re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]', "_", label).lstrip(". ").rstrip() for label in labels]
    count = Counter(names)
    return [
        name if name and count[name] == 1 else f"{name} (class {index})".lstrip()
        for index, name in enumerate(names)
    ]


class Collection:
    """A folder of images to label, and of images labelled already.

    An image that lies anywhere in the folder, under any name, is not added again. New files get names that
    no other file in the folder has, so that they can be moved from class to class.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder, or read the names and sizes of the files in it.

        Raises:
            InputError: the folder cannot be created, read or written.
        """
        self.folder = folder
        self._by_size: dict[int, list[Path]] = {}
        self._names: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._scan()
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise self._failure(error) from error

    def add(self, image: Image, class_folder: str) -> tuple[Path, bool]:
        """Copy an image to `unlabelled/<class_folder>/`, unless the folder has it already.

        Returns:
            Where the image lies, relative to the folder, and whether it is new.

        Raises:
            InputError: the image cannot be written.
        """
        try:
            if present := self._find(image.data):
                return present.relative_to(self.folder), False
            name = self._unused(Path(image.filename).name.lstrip(".") or "image")
            place = self.folder / UNLABELLED / class_folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            self._write(place, image.data)
        except (OSError, ValueError) as error:
            raise self._failure(error) from error
        return place.relative_to(self.folder), True

    def write(self, name: str, content: bytes) -> Path:
        """Write a file beside the images. If there is one of that name, the new one gets a number.

        Raises:
            InputError: the file cannot be written.
        """
        place = self.folder / self._unused(name)
        try:
            self._write(place, content)
        except OSError as error:
            raise self._failure(error) from error
        return place

    def _scan(self) -> None:
        for parent, _, names in os.walk(self.folder, onerror=_reraise):
            for name in names:
                self._note(Path(parent, name))

    def _note(self, path: Path) -> None:
        self._names.add(path.name.casefold())
        if path.is_file() and path.suffix != PARTIAL:
            self._by_size.setdefault(path.stat().st_size, []).append(path)

    def _find(self, data: bytes) -> Path | None:
        """Return a file of this content."""
        wanted = hashlib.sha256(data).digest()
        for path in self._by_size.get(len(data), []):
            if hashlib.sha256(path.read_bytes()).digest() == wanted:
                return path
        return None

    def _unused(self, name: str) -> str:
        """Return the name, with a number if a file has it already. Some systems ignore case."""
        path = Path(name)
        number = 1
        while name.casefold() in self._names:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        return name

    def _write(self, place: Path, content: bytes) -> None:
        """Write a file under a hidden name and rename it, so that an interrupted run leaves no half file."""
        partial = self.folder / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            partial.write_bytes(content)
            partial.rename(place)
        finally:
            partial.unlink(missing_ok=True)
        self._note(place)

    def _failure(self, error: OSError | ValueError) -> InputError:
        return InputError(f"cannot keep images in {self.folder}: {getattr(error, 'strerror', None) or error}")


def _reraise(error: OSError) -> None:
    raise error
