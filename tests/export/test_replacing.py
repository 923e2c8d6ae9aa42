"""Replacing an ensemble: whatever goes wrong, the old one or the new one is left."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.repository import write_ensemble

Describe = Callable[..., Description]
Tree = Callable[[Path], dict[str, bytes]]
OLD = [Member(b"old0"), Member(b"old1"), Member(b"old2")]
NEW = [Member(b"new0"), Member(b"new1")]

KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from coserve_export.ensemble import Description, Member, Preprocessing
from coserve_export.repository import write_ensemble

rename = Path.rename
left = int(sys.argv[2])
def killed(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(source, target)
Path.rename = killed
preprocessing = Preprocessing(8, 8, 8, "bilinear", [0.5] * 3, [0.2] * 3)
description = Description("e", 2, ["a", "b"], preprocessing, 4)
write_ensemble(Path(sys.argv[1]), description, [Member(b"new0"), Member(b"new1")], {}, overwrite=True)
"""


def fail_rename(
    monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException, *, times: int = 1, after: bool = False
) -> None:
    rename = Path.rename
    calls = iter(range(100))

    def failing(source: Path, target: Path) -> Path:
        fails = next(calls) in range(at, at + times)
        if fails and not after:
            raise error
        renamed = rename(source, target)
        if fails:
            raise error
        return renamed

    monkeypatch.setattr(Path, "rename", failing)


def test_the_ensemble_is_removed_first_and_added_last(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ensemble(repository, describe(num_members=3), OLD, {})
    seen: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, target: (seen.append(self.name), rename(self, target))[1]
    )
    write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert (seen[0], seen[1], seen[-1]) == ("probe", "e", "e")


def test_an_ensemble_is_replaced_only_with_overwrite(
    repository: Path, describe: Describe, tree: Tree
) -> None:
    write_ensemble(repository, describe(num_members=3), OLD, {})
    before = tree(repository)
    with pytest.raises(
        RepositoryError, match=r"already has e, e_mean, e_member0.*; --overwrite replaces them"
    ):
        write_ensemble(repository, describe(), NEW, {})
    assert tree(repository) == before
    write_ensemble(repository, describe("e2"), NEW, {})
    write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert sorted(folder.name for folder in repository.iterdir()) == [
        *("e", "e2", "e2_mean", "e2_member0", "e2_member1"),
        *("e_mean", "e_member0", "e_member1"),
    ]
    assert tree(repository)["e_member0/1/model.onnx"] == b"new0"


@pytest.mark.parametrize("at", range(10))
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_replacement_leaves_the_old_ensemble(
    repository: Path,
    describe: Describe,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    error: BaseException,
) -> None:
    write_ensemble(repository, describe(num_members=3), OLD, {})
    before = tree(repository)
    fail_rename(monkeypatch, at, error)
    expected = RepositoryError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert tree(repository) == before
    assert list(repository.parent.iterdir()) == [repository]


@pytest.mark.parametrize("at", range(1, 10))
def test_an_interrupt_just_after_a_rename_leaves_the_old_ensemble(
    repository: Path, describe: Describe, tree: Tree, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write_ensemble(repository, describe(num_members=3), OLD, {})
    before = tree(repository)
    fail_rename(monkeypatch, at, KeyboardInterrupt(), after=True)
    with pytest.raises(KeyboardInterrupt):
        write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert tree(repository) == before
    assert list(repository.parent.iterdir()) == [repository]


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("disk full"), "disk full"), (KeyboardInterrupt(), "interrupted")]
)
def test_files_that_cannot_be_moved_back_are_kept(
    repository: Path,
    describe: Describe,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    reason: str,
) -> None:
    write_ensemble(repository, describe(), OLD[:2], {})
    before = tree(repository)
    fail_rename(monkeypatch, 6, error, times=2)
    with pytest.raises(
        RepositoryError, match=rf"cannot write e to .*: {reason}; files .* are kept in "
    ) as caught:
        write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    kept = Path(str(caught.value).rpartition(" are kept in ")[2])
    assert kept.parent == repository.parent
    assert not (repository / "e").exists(), "an ensemble without its members must not be visible"
    assert tree(kept / "old") == before


def test_a_folder_that_another_process_adds_meanwhile(
    repository: Path, describe: Describe, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ensemble(repository, describe(), OLD[:2], {})
    before = tree(repository)
    rename = Path.rename

    def crossed(source: Path, target: Path) -> Path:
        if source.parent.name == "new":
            (target / "another").mkdir(parents=True, exist_ok=True)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", crossed)
    with pytest.raises(RepositoryError, match="files that could not be moved back are kept in"):
        write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    (kept,) = (path for path in repository.parent.iterdir() if path != repository)
    assert tree(kept / "old") | tree(repository) == before


def test_a_failed_first_export_leaves_nothing(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_rename(monkeypatch, 3, OSError("disk full"))
    with pytest.raises(RepositoryError, match=r"cannot write e to .*: disk full"):
        write_ensemble(repository, describe(), NEW, {})
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize("renames", [0, 1, 3, 6, 9])
def test_a_killed_replacement_never_leaves_half_an_ensemble(
    repository: Path, describe: Describe, tree: Tree, renames: int
) -> None:
    write_ensemble(repository, describe(num_members=3), OLD, {})
    before = tree(repository)
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_RENAME, str(repository), str(renames)])
    assert killed.returncode == -9
    if renames <= 1:
        assert tree(repository) == before
    else:
        assert not (repository / "e").exists()
    assert [path for path in repository.iterdir() if path.name.startswith(".")] == []

    write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert sorted(path.name for path in repository.iterdir()) == ["e", "e_mean", "e_member0", "e_member1"]


def test_links_in_the_way_are_replaced_and_their_targets_kept(
    repository: Path, tmp_path: Path, describe: Describe, tree: Tree
) -> None:
    write_ensemble(repository, describe(), OLD[:2], {})
    kept = tmp_path / "kept"
    (repository / "e_member0").rename(kept)
    (repository / "e_member0").symlink_to(kept)
    (repository / "e_member1").rename(tmp_path / "gone")
    (repository / "e_member1").symlink_to("nowhere")
    (repository / "beside").symlink_to("nowhere")
    before = tree(kept)
    with pytest.raises(RepositoryError, match="already has e, e_mean, e_member0, e_member1;"):
        write_ensemble(repository, describe(), NEW, {})
    write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert sorted(path.name for path in repository.iterdir()) == [
        *("beside", "e", "e_mean", "e_member0", "e_member1")
    ]
    assert not any((repository / name).is_symlink() for name in ("e_member0", "e_member1"))
    assert tree(kept) == before


@pytest.mark.parametrize("name", ["e", "e_mean", "e_member7"])
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_model_is_never_replaced(
    repository: Path, describe: Describe, tree: Tree, name: str, kind: str, overwrite: bool
) -> None:
    repository.mkdir(parents=True)
    if kind == "file":
        (repository / name).write_text("mine")
    else:
        (repository / name).mkdir()
    if kind == "folder":
        (repository / name / "cat.jpg").write_bytes(b"mine")
    before = tree(repository)
    with pytest.raises(RepositoryError, match=f"/{name} is no model, since it has no config.pbtxt"):
        write_ensemble(repository, describe(), NEW, {}, overwrite=overwrite)
    assert tree(repository) == before
    assert [path.name for path in repository.iterdir()] == [name]


def test_a_folder_of_a_lower_layer_of_an_overlay(
    repository: Path, describe: Describe, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ensemble(repository, describe(), OLD[:2], {})
    before = tree(repository)
    fail_rename(monkeypatch, 1, OSError(errno.EXDEV, "Invalid cross-device link"))
    with pytest.raises(
        RepositoryError, match=r"Invalid cross-device link; .* container image .*: delete the ensemble's"
    ):
        write_ensemble(repository, describe(), NEW, {}, overwrite=True)
    assert tree(repository) == before
