"""Replacing files of a repository in one go: stage them beside it, then rename all of them or none."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Keep other exports from changing the repository meanwhile; wait for one that does.

    Raises:
        OSError: the repository is not a readable folder.
    """
    # Windows has no such locks.
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(repository, os.O_RDONLY)
    try:
        # Some network file systems have no locks, or none for folders.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class UndoError(OSError):
    """A failed move that could not be undone: files moved out are still in the staging folder."""


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """Create a folder from which files can be renamed into the repository; remove it except on UndoError.

    Raises:
        OSError: the folder cannot be created.
    """
    staging = _create_folder(repository)
    try:
        yield staging
    except UndoError:
        raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _create_folder(repository: Path) -> Path:
    """Create the folder beside the repository, or inside if its parent is read-only or on another mount."""
    parent = repository.resolve().parent
    if os.access(parent, os.W_OK):
        staging = Path(tempfile.mkdtemp(prefix=".coserve-", dir=parent))
        # Only a rename reveals a bind mount of the same file system. The probe is a file, since Triton would
        # take a folder for a model.
        source = staging / "probe"
        target = repository / staging.name
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
    """Rename every source to its target, in order; undo all moves if one fails or the user interrupts.

    Args:
        moves: pairs of source and target. A target file is replaced and may appear in several moves; a
            target folder must not exist.
        staging: the folder that backs up replaced files.

    Raises:
        OSError: a rename failed, and the moves before it were undone.
        UndoError: moves could not be undone; the message says where their files are.
    """
    started: list[tuple[Path, Path, Path | None]] = []
    try:
        for source, target in moves:
            backup = None
            if target.is_file():
                backup = Path(shutil.copy2(target, staging / f"before{len(started)}"))
            # Recorded before the rename, since an interrupt may arrive right after it.
            started.append((source, target, backup))
            source.rename(target)
    except BaseException as error:
        if started and (started[-1][0].exists() or not started[-1][1].exists()):
            started.pop()
        _undo(started, error, staging)
        raise


def _undo(done: Sequence[tuple[Path, Path, Path | None]], error: BaseException, staging: Path) -> None:
    """Undo moves, last one first. Stop at the first failure, because earlier moves depend on later ones."""
    try:
        for source, target, backup in reversed(done):
            if backup is None:
                target.rename(source)
            else:
                backup.rename(target)
    except BaseException as second:
        reason = str(error) or "interrupted"
        raise UndoError(f"{reason}; files that could not be moved back are kept in {staging}") from second
