"""Check at the start of a run that its folder can take what the run will write, hours later."""

import shutil
import tempfile
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from coserve_training.errors import RunError


def check_output(folder: Path, needed_bytes: int) -> None:
    """Check a run folder's path, write access and free space. Nothing remains of the check.

    Args:
        folder: the absolute path of the run folder, which need not exist.
        needed_bytes: what the run will write at least.

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
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            probe.flush()
        free = shutil.disk_usage(folder).free
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write the run folder {_show(folder)}: {reason}") from error
    finally:
        for parent in created:
            if parent.is_dir():
                parent.rmdir()
    if free < needed_bytes:
        raise RunError(
            f"cannot write the run folder {_show(folder)}: {free / 1e6:.0f} MB are free there, and the run's "
            f"checkpoints need {needed_bytes / 1e6:.0f} MB"
        )


def _show(folder: Path) -> str:
    name = str(folder)
    return name if name.isprintable() else ascii(name)
