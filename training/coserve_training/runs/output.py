"""Check at the start of a run that its folder can take what the run will write, hours later."""

import shutil
import tempfile
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from coserve_training.errors import RunError


def check_output(folder: Path, needed_bytes: int) -> None:
    """Check a run folder's path, write access and free space, without creating it.

    Args:
        folder: the absolute path of the run folder, which need not exist.
        needed_bytes: size of the run's checkpoints, of which a resumed run has written some.

    Raises:
        RunError: if the folder cannot be used.
    """
    try:
        system, path = url_to_fs(str(folder / "last.ckpt"))
    # fsspec takes parts of some paths for protocols; any import or value error may follow.
    except Exception as error:
        raise RunError(f"{_show(folder)}: not a path that checkpoints can be written to ({error})") from error
    if not isinstance(system, LocalFileSystem) or Path(path) != folder / "last.ckpt":
        raise RunError(
            f"{_show(folder)}: not a path that checkpoints can be written to: Lightning takes part of it for "
            "a URL; choose another --output, without '::' and '://'"
        )
    try:
        # Several runs may begin below one missing folder: none may create it, and remove it under the others.
        existing = _nearest_existing(folder)
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"probe")
            probe.flush()
        written = sum(file.stat().st_size for file in folder.glob("*.ckpt"))
        free = shutil.disk_usage(existing).free
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write the run folder {_show(folder)}: {reason}") from error
    if free < needed_bytes - written:
        raise RunError(
            f"cannot write the run folder {_show(folder)}: {free / 1e6:.0f} MB are free there, and the run's "
            f"checkpoints need {(needed_bytes - written) / 1e6:.0f} MB"
        )


def _nearest_existing(folder: Path) -> Path:
    """Return the folder, or else the nearest one around it that exists."""
    try:
        folder.lstat()
    except FileNotFoundError:
        return _nearest_existing(folder.parent)
    return folder


def _show(folder: Path) -> str:
    name = str(folder)
    return name if name.isprintable() else ascii(name)
