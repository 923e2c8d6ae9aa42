"""Writes results to files, whole or not at all."""

import os
from pathlib import Path


class OutputError(Exception):
    """A file of results cannot be written."""


def check_writable(file: Path) -> None:
    """Check that a file can be written, before work that takes long; do not change it.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        target = _resolve(file)
        if target.is_dir():
            raise OutputError(f"cannot write {file}: it is a folder")
        if _is_special(target):
            target.open("a").close()
            return
        partial = _partial(target)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all; follow symbolic links, and write to devices and pipes.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        target = _resolve(file)
        if _is_special(target):
            target.write_text(text, "utf-8")
            return
        partial = _partial(target)
        try:
            partial.write_text(text, "utf-8")
            partial.replace(target)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error


def _resolve(file: Path) -> Path:
    # `Path.resolve` raises errors of its own for loops.
    target = Path(os.path.realpath(file))
    if target.is_symlink():
        raise OutputError(f"cannot write {file}: it is a link that leads to itself")
    return target


def _is_special(target: Path) -> bool:
    """Return whether the target is a device or a pipe, which a rename would replace."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")
