"""Read files that users name, which may be anything."""

import errno
import os
import stat
from pathlib import Path

NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)


def check_regular(path: Path) -> None:
    """Check that a path leads to a regular file: opening a pipe blocks, and a device may have no end.

    Raises:
        OSError: it leads elsewhere, or nowhere.
    """
    try:
        mode = path.stat().st_mode
    # A null byte in the path.
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: it is not such a file, or cannot be read.
    """
    check_regular(path)
    # Non-blocking, in case the file has just been replaced by a pipe.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NON_BLOCKING)) as file:
        data = file.read(limit + 1) or b""
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"Larger than {limit} bytes", str(path))
    return data


def read_text(path: Path, limit: int) -> str:
    """Read a regular file of at most `limit` bytes as UTF-8; a byte order mark is dropped.

    Raises:
        OSError: it is not such a file, is not UTF-8, or cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"Not UTF-8: {error}", str(path)) from error


def describe(error: OSError) -> str:
    """Return what went wrong, without the path."""
    return error.strerror or str(error) or type(error).__name__


def printable(text: str) -> str:
    """Return a text that any Unicode encoding can write: file names may hold any bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
