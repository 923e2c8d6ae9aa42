"""Several exports to one repository at the same time."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.repository import write_ensemble
from coserve_export.versions import write_version

Describe = Callable[..., Description]
OLD = [Member(b"old0"), Member(b"old1"), Member(b"old2")]
NEW = [Member(b"new0"), Member(b"new1")]


def test_other_exports_wait_until_every_folder_is_moved(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ensemble(repository, describe(num_members=3), OLD, {})
    rename = Path.rename
    moved: list[str] = []

    def exclusive(source: Path, target: Path) -> Path:
        with pytest.raises(BlockingIOError):
            try_to_lock(repository)
        moved.append(source.name)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", exclusive)
    write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    write_version(repository, describe(), OLD[:2], {})
    assert {"e", "e_member2", "2", "extended.pbtxt"} <= set(moved)
    try_to_lock(repository)


def try_to_lock(repository: Path) -> None:
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_a_file_system_without_locks(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_ensemble(repository, describe(), NEW, {})
    assert (repository / "e").is_dir()


def test_the_second_of_two_exports_finds_the_first(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        write_ensemble(repository, describe(), OLD[:2], {})
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RepositoryError, match="already has e, e_mean, e_member0, e_member1; --overwrite"):
        write_ensemble(repository, describe(), NEW, {})
    assert (repository / "e_member0/1/model.onnx").read_bytes() == b"old0"
