"""Finding labelled images: `<split>/<class>/<image>` in folders and zips."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from coserve_training.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
SPLITS = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}
"""Folder names by the split they stand for; whatever is not trained on is tested on."""


@dataclass(frozen=True)
class ImageFile:
    """One encoded image: where it came from, for messages, and how to read its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass
class Files:
    """Image files by split, then by class name."""

    by_split: dict[str, dict[str, list[ImageFile]]] = field(default_factory=dict)

    def add(self, path: PurePosixPath, file: ImageFile) -> None:
        """File an image under the split and class its path ends in; ignore all other files."""
        if path.suffix.lower() not in IMAGE_SUFFIXES or len(path.parts) < 3 or path.name.startswith("."):
            return
        folder, label = path.parts[-3:-1]
        if folder in SPLITS and not any(part.startswith((".", "__MACOSX")) for part in path.parts):
            self.by_split.setdefault(SPLITS[folder], {}).setdefault(label, []).append(file)


def find_images(path: Path) -> Files:
    """List the images of a folder or a zip, sorted by name.

    Raises:
        DataError: when there is no such path, a zip is damaged, or no image lies in a split's class folder.
    """
    files = Files()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                files.add(
                    PurePosixPath(file.relative_to(path.parent).as_posix()),
                    ImageFile(str(file), file.read_bytes),
                )
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        for name in sorted(archive.namelist()):
            files.add(PurePosixPath(name), ImageFile(f"{path}:{name}", partial(archive.read, name)))
    elif path.exists():
        raise DataError(f"{path}: neither a folder, a zip, nor an official CIFAR file")
    else:
        raise DataError(f"{path}: no such file or folder")
    if not files.by_split:
        raise DataError(
            f"{path}: no image found; expected train/<class>/<image> and test/<class>/<image> (or val/)"
        )
    return files
