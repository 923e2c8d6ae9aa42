"""Detect changes of files that are reloaded."""

from pathlib import Path

FileStamp = tuple[int, int, int, int] | None


def read_stamp(file: Path) -> FileStamp:
    """Return a value that changes with the file, its permissions or its link's target; None if missing."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
