import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.repository import check_can_write, write_ensemble
from coserve_export.versions import check_can_extend

Describe = Callable[..., Description]
Tree = Callable[[Path], dict[str, bytes]]
OLD = [Member(b"old0"), Member(b"old1"), Member(b"old2")]
NEW = [Member(b"new0"), Member(b"new1")]


def test_layout(repository: Path, describe: Describe, tree: Tree) -> None:
    write_ensemble(repository, describe(), NEW, {})
    assert sorted(tree(repository)) == [
        "e/1/.keep",
        "e/config.pbtxt",
        "e/labels.txt",
        "e_mean/1/model.onnx",
        "e_mean/config.pbtxt",
        "e_member0/1/model.onnx",
        "e_member0/config.pbtxt",
        "e_member1/1/model.onnx",
        "e_member1/config.pbtxt",
    ]
    files = tree(repository)
    assert files["e_member1/1/model.onnx"] == b"new1"
    assert files["e/labels.txt"].decode() == "cat\ndog\nfrog\nship\nnaïve plane\n"
    assert list(repository.parent.iterdir()) == [repository]


def test_no_folder_is_lost_where_empty_files_are(repository: Path, describe: Describe, tree: Tree) -> None:
    """KServe's storage initializer copies no empty files from S3 and Azure."""
    write_ensemble(repository, describe(), NEW, {})
    assert all(tree(repository).values())


def test_servers_of_other_users_can_read_the_folders(repository: Path, describe: Describe) -> None:
    write_ensemble(repository, describe(), NEW, {})
    assert all(path.stat().st_mode & 0o055 == 0o055 for path in repository.rglob("*") if path.is_dir())


def test_a_mounted_repository_is_staged_inside(
    repository: Path, describe: Describe, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate a bind mount of the same file system, which only root could create."""
    write_ensemble(repository, describe(), OLD[:2], {})
    expected = tree(repository)
    rename = Path.rename

    def across(source: Path, target: Path) -> Path:
        if repository in target.parents and repository not in source.parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", across)
    write_ensemble(repository, describe(), OLD[:2], {}, overwrite=True)
    assert tree(repository) == expected
    assert list(repository.parent.iterdir()) == [repository]


def test_the_repository_must_be_a_folder(tmp_path: Path, describe: Describe) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="is not a folder"):
        write_ensemble(tmp_path / "file", describe(), NEW, {})
    with pytest.raises(RepositoryError, match="cannot write"):
        write_ensemble(tmp_path / "file" / "below", describe(), NEW, {})


def test_the_repository_is_a_link_that_leads_nowhere(tmp_path: Path, describe: Describe) -> None:
    link = tmp_path / "link"
    for target in (tmp_path / "nowhere", link):
        link.symlink_to(target)
        with pytest.raises(RepositoryError, match=rf"link is a link that leads nowhere, to {target}"):
            check_can_write(link, "e", overwrite=False)
        link.unlink()


def test_a_linked_repository_is_written_through_the_link(
    repository: Path, tmp_path: Path, describe: Describe, tree: Tree
) -> None:
    repository.mkdir(parents=True)
    (tmp_path / "link").symlink_to(repository)
    write_ensemble(tmp_path / "link", describe(), NEW, {})
    assert tree(repository)["e_member1/1/model.onnx"] == b"new1"
    assert list(repository.parent.iterdir()) == [repository]


@pytest.mark.parametrize("broken", ["r" * 300, "r" * 300 + "/below"])
def test_a_path_that_cannot_exist_is_one_error(tmp_path: Path, broken: str) -> None:
    with pytest.raises(RepositoryError, match="cannot be used: File name too long"):
        check_can_write(tmp_path / broken, "e", overwrite=False)


def test_a_repository_that_cannot_be_listed_is_one_error(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ensemble(repository, describe(), NEW, {})

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RepositoryError, match=r"repository cannot be used: Permission denied"):
        check_can_write(repository, "e", overwrite=True)


def test_a_read_only_place_is_refused_before_any_work(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere but on read-only file systems, of which `os.access` knows."""
    write_ensemble(repository, describe(), NEW, {})
    monkeypatch.setattr(os, "access", lambda place, _: place != repository)
    for place in (repository, repository / "deeper" / "still"):
        with pytest.raises(RepositoryError, match=f"{place} cannot be written: {repository} is read-only"):
            check_can_write(place, "new", overwrite=False)
    with pytest.raises(RepositoryError, match="is read-only"):
        check_can_extend(repository, describe())
    check_can_write(repository.parent / "other", "new", overwrite=False)
