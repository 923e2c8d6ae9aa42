"""Accept images in any supported form, read them, and find them in folders."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from coserve_client.archives import ZippedFile, files_in_zip, is_litter
from coserve_client.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
    | {".avif", ".heic", ".heif"}
)
"""File name endings, in lower case, that mark an image in a folder."""


@dataclass(frozen=True)
class Image:
    """An encoded image (JPEG, PNG, …) with the file name that the server reports it under."""

    data: bytes = field(repr=False)
    filename: str


Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image | ZippedFile


def read_images(sources: Source | Iterable[Source]) -> list[Image]:
    """Read one or several images, in order. An unnamed image is called `image_<index>`.

    Files are read whole, so that the request can be repeated.

    Raises:
        InputError: there is no image, or one cannot be read; the message names it.
    """
    one = _is_one_image(sources)
    several = iter([cast("Source", sources)]) if one else iterate(cast("Iterable[Source]", sources))
    images = [read_image(source, index) for index, source in enumerate(several)]
    if not images:
        raise InputError("no image given")
    return images


def iterate(images: Iterable[Source]) -> Iterator[Source]:
    """Start to iterate over several images.

    Raises:
        InputError: it is one image, whose letters, bytes or lines would be taken for images, or not iterable.
    """
    kind = _kind(images)
    if _is_one_image(images):
        raise InputError(
            f"images must be several images, not one of type {kind}: pass [image], or use classify; for "
            "a folder, use classify_folder"
        )
    try:
        return iter(images)
    except TypeError as error:
        raise InputError(f"images must be an image or an iterable of images, not {kind}") from error


def read_image(source: Source, index: int) -> Image:
    """Read one image.

    Args:
        source: the image in any supported form.
        index: its position in the request, which names it if nothing else does.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(source, Image):
        if not isinstance(source.filename, str):
            raise InputError(
                f"the filename of an Image must be a string, not {type(source.filename).__name__}"
            )
        return Image(_copy_bytes(source.data), _name(source.filename, index))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Image(_copy_bytes(source), _name("", index))
    if isinstance(source, (str, os.PathLike)):
        # The path of an entry of os.scandir may be bytes.
        text = os.fsdecode(source)
        if not text:
            # `Path` would take it for the working directory.
            raise InputError("the path of an image must not be empty")
        path = Path(text)
        return Image(_read_path(path), _name(path.name, index))
    if isinstance(source, ZippedFile):
        return Image(source.read(), _name(source.path.name, index))
    return _read_open_file(source, index)


def images_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Find the image files in a folder and its subfolders, sorted by path.

    Hidden entries and those that systems leave behind are passed over. Symbolic links are followed, except
    back to a folder above. The folder itself is listed at once, each subfolder when the iteration reaches it;
    one that cannot be listed takes the place of its images.

    Raises:
        InputError: the folder cannot be read.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"a folder must be a path, not {type(folder).__name__}")
    return _images_below(os.fsdecode(folder), frozenset())


def images_in_zip(path: str | os.PathLike[str]) -> list[ZippedFile]:
    """Find the image files in a zip, sorted by path, without hidden entries and those of systems.

    Raises:
        InputError: the zip cannot be read.
    """
    return [file for file in files_in_zip(path) if file.path.suffix.lower() in SUFFIXES]


def _is_one_image(images: object) -> bool:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image)
    return isinstance(images, kinds) or hasattr(images, "read")


def _kind(value: object) -> str:
    """Return the name of a value's type, with its module: Pillow has a class `Image` too."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _images_below(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = Path(folder).stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return iter(())
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {folder}: {reason}") from error
    return _images_among(ordered, above | {identity})


def _images_among(entries: Iterable["os.DirEntry[str]"], above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    for entry in entries:
        if is_litter(entry.name):
            continue
        if _is_folder(entry):
            try:
                below = _images_below(entry.path, above)
            except InputError:
                # Reading it later reports the error, as for an image.
                below = iter((Path(entry.path),))
            yield from below
        elif Path(entry.name).suffix.lower() in SUFFIXES and _is_file_or_broken(entry):
            yield Path(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    # A link to itself.
    except OSError:
        return False


def _is_file_or_broken(entry: "os.DirEntry[str]") -> bool:
    """Return whether the entry is a file, or a broken link; reading it later reports the error."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def _copy_bytes(data: bytes | bytearray | memoryview) -> bytes:
    # bytes(5) would be five zeros.
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InputError(f"the data of an Image must be bytes, not {type(data).__name__}")
    try:
        return bytes(data)
    except ValueError as error:
        raise InputError(f"cannot read an image in memory: {error}") from error


def _read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _read_open_file(file: BinaryIO, index: int) -> Image:
    if not hasattr(file, "read"):
        raise InputError(
            f"an image must be a path, bytes, a file opened in binary mode or an Image, not {_kind(file)}"
        )
    name = getattr(file, "name", None)
    filename = _name(Path(name).name if isinstance(name, str) else "", index)
    try:
        data = file.read()
    # Other libraries' files raise many types of errors: EOFError, zlib.error, those of storage services.
    except Exception as error:
        raise InputError(f"cannot read {filename}: {error}") from error
    if not isinstance(data, bytes):
        raise InputError(
            f"cannot read {filename}: read() returns {_kind(data)}, not bytes; open files in binary mode"
        )
    return Image(data, filename)


def _name(name: str, index: int) -> str:
    """Return a name that a multipart header can carry; a part without one would be no file."""
    # File names may contain undecodable bytes (PEP 383).
    return name.encode("utf-16", "surrogatepass").decode("utf-16", "replace") or f"image_{index}"
