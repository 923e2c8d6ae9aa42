"""Changing the files of a repository: built beside it, then moved in, all or none."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UndoError(OSError):
    """Moves failed, and so did taking them back: what was moved out is still in the staging folder."""


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A folder from which files can be renamed into the repository; gone at the end, but for an UndoError.

    Raises:
        OSError: it cannot be made.
    """
    staging = _make_folder(repository)
    try:
        yield staging
    except UndoError:
        raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
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
        UndoError: they could not all be undone; says where the rest is.
    """
    begun: list[tuple[Path, Path, Path | None]] = []
    try:
        for source, target in moves:
            before = None
            if target.is_file():
                before = Path(shutil.copy2(target, staging / f"before{len(begun)}"))
            # Noted first, since an interrupt may come between the rename and whatever follows it.
            begun.append((source, target, before))
            source.rename(target)
    except BaseException as error:
        if begun and (begun[-1][0].exists() or not begun[-1][1].exists()):
            begun.pop()
        _undo(begun, error, staging)
        raise


def _undo(begun: Sequence[tuple[Path, Path, Path | None]], error: BaseException, staging: Path) -> None:
    """Take moves back, the last one first; at one that fails the earlier ones stay, which rely on it."""
    try:
        for source, target, before in reversed(begun):
            if before is None:
                target.rename(source)
            else:
                before.rename(target)
    except BaseException as second:
        reason = str(error) or "interrupted"
        raise UndoError(f"{reason}; what could not be moved back is kept in {staging}") from second
