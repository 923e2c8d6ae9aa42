"""A lock on a run folder: two trainings in one folder would overwrite each other's checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coserve_training.errors import RunError

WRITTEN = (
    "config.json",
    "metrics.csv",
    "last.ckpt",
    "best.ckpt",
    "evaluation.json",
    "images.npz",
    "samples.npz",
)
"""The files that only trainings write; evaluations write others, during a training too."""

_used: dict[tuple[int, int], object] = {}
"""The users of folders in this process, by device and inode: system locks keep out only other processes."""


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Create a run folder, keep other trainings out of it, and remove what they left half written.

    The lock ends with the process, however that ends. On file systems without locks, other processes are not
    kept out, and nothing is removed.

    Raises:
        RunError: if another training uses the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    place = (status.st_dev, status.st_ino)
    user = object()
    # Checked before the file is opened: closing it would end the lock that this process has on it.
    if _used.setdefault(place, user) is not user:
        raise _in_use(folder)
    try:
        with _lock(folder):
            yield
    finally:
        del _used[place]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    with lock:
        if _take(lock.fileno(), folder):
            for name in WRITTEN:
                for partial in folder.glob(f".{name}.*.partial"):
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
        raise _in_use(folder) from error
    except OSError:
        return False
    return True


def _in_use(folder: Path) -> RunError:
    return RunError(f"another training is using {folder}; wait for it to end, or choose another --output")


def _cannot_write(folder: Path, error: OSError) -> RunError:
    return RunError(f"cannot write the run folder {folder}: {error.strerror or error}")
