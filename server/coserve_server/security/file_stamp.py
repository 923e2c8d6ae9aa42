"""Tells whether a file that is read again when it changes has changed."""

from pathlib import Path

LOOK_S = 1.0
"""Least time between two looks."""

FileStamp = tuple[int, int, int] | None


def file_stamp(file: Path) -> FileStamp:
    """Differs from the one before when the file, or what a link leads to, does; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
