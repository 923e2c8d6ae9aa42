"""Writing results to a file."""

from pathlib import Path

from coserve_cli.bench.errors import BenchError


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, "utf-8")
    partial.rename(file)


def check_folder(file: Path) -> None:
    """Find out before measuring whether there is a folder to write to.

    Raises:
        BenchError: there is none.
    """
    if not file.parent.is_dir():
        raise BenchError(f"cannot write {file}: {file.parent} is no folder")
