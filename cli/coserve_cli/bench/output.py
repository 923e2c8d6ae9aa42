"""Writing results to a file."""

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, "utf-8")
    partial.rename(file)
