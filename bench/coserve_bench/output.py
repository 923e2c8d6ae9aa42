"""Files that commands write their results to."""

from collections.abc import Iterable
from pathlib import Path

import typer


class OutputError(Exception):
    """Results cannot be written where they are wanted."""


def check_writable(file: Path) -> None:
    """Find out, before work that takes long, whether a file can be written; what is there stays.

    Raises:
        OutputError: it cannot.
    """
    target = file.resolve()
    try:
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
    """Write a text file whole or not at all, through symbolic links; devices and pipes are written to.

    Raises:
        OutputError: it cannot be written.
    """
    target = file.resolve()
    try:
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


def show(text: str, table: Iterable[str], file: Path | None, as_json: bool) -> None:
    """Print results, as JSON or as a table, and then write the JSON: a full disk does not lose them.

    Raises:
        OutputError: the file cannot be written.
    """
    typer.echo(text if as_json else "\n".join(table))
    if file is not None:
        write_whole(file, f"{text}\n")


def _is_special(target: Path) -> bool:
    """Whether it is there, and neither file nor folder: renaming another in its place would remove it."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")
