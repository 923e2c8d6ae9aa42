"""Changing the files of a repository: built beside it, then moved in, all or none."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A folder from which files can be renamed into the repository; gone at the end.

    Raises:
        OSError: it cannot be made.
    """
    staging = _make_folder(repository)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _make_folder(repository: Path) -> Path:
    """Beside the repository, or inside where its parent is not ours or lies across a mount."""
    parent = repository.resolve().parent
    if os.access(parent, os.W_OK):
        staging = Path(tempfile.mkdtemp(prefix=".coserve-", dir=parent))
        # Nothing but a rename tells a mount of the same file system; Triton takes no file for a model.
        source, target = staging / "probe", repository / staging.name
        source.touch()
        try:
            source.rename(target)
            target.unlink()
            return staging
        except BaseException as error:
            shutil.rmtree(staging)
            if not isinstance(error, OSError) or error.errno != errno.EXDEV:
                raise
    return Path(tempfile.mkdtemp(prefix=".coserve-", dir=repository))


def move_all(moves: Sequence[tuple[Path, Path]], staging: Path) -> None:
    """Rename in order, (source, target); undo what was done where one fails or the user interrupts.

    A target that is a file is replaced; it may come several times. A target that is a folder must not exist.

    Args:
        staging: keeps the files replaced.

    Raises:
        OSError: of a rename, after the others were undone.
    """
    done: list[tuple[Path, Path, Path | None]] = []
    try:
        for source, target in moves:
            before = None
            if target.is_file():
                before = Path(shutil.copy2(target, staging / f"before{len(done)}"))
            source.rename(target)
            done.append((source, target, before))
    except BaseException:
        for source, target, before in reversed(done):
            if before is None:
                target.rename(source)
            else:
                before.rename(target)
        raise
