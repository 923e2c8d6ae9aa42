"""A lock on a run folder: two trainings in one folder would overwrite each other's checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coserve_training.errors import RunError


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Create a run folder, keep other processes from training in it, and remove files left half written.

    The lock ends with the process, however that ends. On file systems without locks, nothing is kept out or
    removed.

    Raises:
        RunError: if another training uses the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise RunError(f"cannot write the run folder {folder}: {error.strerror or error}") from error
    with lock:
        if _take(lock.fileno(), folder):
            for partial in folder.glob(".*.partial"):
                with suppress(OSError):
                    partial.unlink()
        yield


def _take(descriptor: int, folder: Path) -> bool:
    # Windows has no such locks.
    if os.name == "nt":
        return False
    import fcntl

    try:
        # Not flock: processes that read images inherit its locks, and may outlive a killed training.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        choice = "wait for it to end, or choose another --output"
        raise RunError(f"another training is using {folder}; {choice}") from error
    except OSError:
        return False
    return True
