"""Looks at the files of a model repository; one entry that cannot be read hides no other."""

import os
import stat
from pathlib import Path

from coserve_server.ensembles.ensemble import Stamp

AnyPath = str | os.PathLike[str]


def list_folders(folder: AnyPath) -> tuple[list[str], list[tuple[str, OSError]]]:
    """List the visible folders in a folder; an export is hidden until it is complete.

    Returns:
        Their paths, sorted; and the paths of links that lead nowhere, and why.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = []
    faults = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                # By itself, `is_dir` is False for a dangling link.
                if entry.is_symlink():
                    entry.stat()
                if entry.is_dir():
                    folders.append(entry.path)
            except OSError as error:
                faults.append((entry.path, error))
    return sorted(folders), faults


def read_stamps(repository: AnyPath) -> frozenset[Stamp]:
    """Read the stamps of all models, versions and their files; equal stamps mean that nothing changed.

    An entry that cannot be read has a stamp too, which changes once it can.

    Raises:
        OSError: the repository itself cannot be read.
    """
    models, faults = list_folders(repository)
    stamps = [_stamp_fault(path, error) for path, error in faults]
    for model in models:
        for folder in (model, *_list_versions(model)):
            # Empty folders count: an ensemble's version folder is one.
            stamps.append((folder, 0, 0, 0))
            stamps.extend(stamp_files(folder))
    return frozenset(stamps)


def stamp_files(folder: AnyPath) -> tuple[Stamp, ...]:
    """Return the stamps of the files in a folder; none if the folder has just been removed."""
    try:
        with os.scandir(folder) as entries:
            stamps = [_stamp_entry(entry) for entry in entries]
    except FileNotFoundError:
        return ()
    except OSError as error:
        return (_stamp_fault(os.fspath(folder), error),)
    return tuple(sorted(stamp for stamp in stamps if stamp is not None))


def exists(path: Path) -> bool:
    """Return whether there is an entry, wherever it leads; unlike `Path.exists`, raise OSError if unknown."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def find_special_file(folder: Path) -> Path | None:
    """Find a pipe or a device, which a library that opens it would wait for."""
    for path in sorted(folder.iterdir()):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            return path
    return None


def _list_versions(model: str) -> list[str]:
    try:
        return list_folders(model)[0]
    except OSError:
        # `stamp_files` has noted it.
        return []


def _stamp_entry(entry: "os.DirEntry[str]") -> Stamp | None:
    """Return a file's stamp; None for a folder."""
    try:
        if entry.is_dir():
            return None
        status = entry.stat()
    except OSError as error:
        return _stamp_fault(entry.path, error)
    return entry.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp_fault(path: str, error: OSError) -> Stamp:
    """Return the stamp of an entry that cannot be read; no modification time is negative in this way."""
    try:
        changed = os.lstat(path).st_ctime_ns
    except OSError:
        changed = 0
    return path, 0, -(error.errno or 1), changed
