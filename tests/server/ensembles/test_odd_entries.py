"""Entries of a repository that nobody can read: each is its own error, and everything beside it is served."""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coserve_server.ensembles.files import read_stamps
from coserve_server.ensembles.repository import MAX_CONFIG_BYTES, read_contents, read_repository
from coserve_server.errors import RepositoryError
from tests.server.onnx_repository import write_repository

NOBODY = 65534
Make = Callable[[Path], object]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A repository that other users may read, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        made = write_repository(Path(place, "models"))
        # Python loads codecs when first used, from where another user may not look.
        assert read_contents(made).errors == {}
        yield made


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user to whom permissions apply."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(own)


def make_socket(path: Path) -> None:
    # Paths of sockets are short.
    with socket.socket(socket.AF_UNIX) as made:
        before = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.fchdir(before)
            os.close(before)


def forbid(path: Path) -> None:
    path.write_text("") if path.suffix else path.mkdir()
    path.chmod(0)


def hold(make: Make) -> Make:
    """Make the configuration of a folder."""

    def apply(path: Path) -> None:
        path.mkdir()
        make(path / "config.pbtxt")

    return apply


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangle(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


WRONG: dict[str, tuple[Make, str]] = {
    "a dangling link": (dangle, "No such file or directory"),
    "a loop": (loop, "Too many levels of symbolic links"),
    "a link into a loop": (
        lambda path: (loop(path.with_name(".x")), path.symlink_to(".x/y")),
        "Too many levels",
    ),
    "an unreadable folder": (forbid, "Permission denied"),
    "a configuration that is a folder": (hold(Path.mkdir), "Is a directory"),
    "… a pipe": (hold(os.mkfifo), "Not a regular file"),
    "… a device": (hold(lambda path: path.symlink_to("/dev/zero")), "Not a regular file"),
    "… a socket": (hold(make_socket), "Not a regular file"),
    "… a dangling link": (hold(dangle), "No such file or directory"),
    "… a loop": (hold(loop), "Too many levels of symbolic links"),
    "… unreadable": (hold(forbid), "Permission denied"),
    "… huge": (hold(lambda path: path.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))), "Larger than"),
    "… not text": (hold(lambda path: path.write_bytes(b"\x00\xff\xfe")), "Not UTF-8"),
    "… too deep": (hold(lambda path: path.write_text("input {" * 3000)), "cannot be read"),
    "… a number of many digits": (
        hold(lambda path: path.write_text(f"max_batch_size: {'9' * 5000}")),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_entry_that_cannot_be_read_is_one_error_until_it_can(kind: str, folder: Path) -> None:
    make, reason = WRONG[kind]
    make(folder / "odd")
    with unprivileged():
        contents = read_contents(folder)
        before = read_stamps(folder)
    assert list(contents.versions) == ["pair"]
    assert list(contents.errors) == ["odd"]
    assert contents.errors["odd"].startswith(f"{folder / 'odd'}")
    assert reason in contents.errors["odd"]
    assert "\n" not in contents.errors["odd"]
    odd = folder / "odd"
    if odd.is_symlink():
        odd.unlink()
    else:
        odd.chmod(0o755)
        shutil.rmtree(odd)
    assert read_stamps(folder) != before, "the entry is gone"
    write_repository(folder, "odd")
    with unprivileged():
        assert set(read_contents(folder).versions) == {"odd", "pair"}


def test_a_version_folder_made_later_is_noticed(folder: Path) -> None:
    """An ensemble's own is empty."""
    (folder / "pair/1").rmdir()
    assert "has no version folder" in read_contents(folder).errors["pair"]
    before = read_stamps(folder)
    (folder / "pair/1").mkdir()
    assert read_stamps(folder) != before
    assert read_contents(folder).errors == {}


def test_permission_given_later_is_noticed(folder: Path) -> None:
    write_repository(folder, "odd")
    # The last one is empty.
    for path in (folder / "odd", folder / "odd_member0/1", folder / "odd/1"):
        path.chmod(0)
        with unprivileged():
            contents = read_contents(folder)
            before = read_stamps(folder)
        assert "Permission denied" in contents.errors["odd"], path
        assert list(contents.versions) == ["pair"]
        path.chmod(0o755)
        with unprivileged():
            assert read_stamps(folder) != before
            assert set(read_contents(folder).versions) == {"odd", "pair"}


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, make_socket])
def test_what_is_no_folder_is_no_model(make: Make, folder: Path) -> None:
    make(folder / "odd")
    contents = read_contents(folder)
    assert (list(contents.versions), contents.errors, contents.left_out) == (["pair"], {}, {})


def test_folders_that_are_no_models_are_named(folder: Path) -> None:
    (folder / "notes").mkdir()
    write_repository(folder, "emptied")
    (folder / "emptied/config.pbtxt").write_text("# nothing\n")
    forbid(folder / "lost+found")
    with unprivileged():
        contents = read_contents(folder)
    odd = {"emptied": "config.pbtxt is empty", "lost+found": "Permission denied", "notes": "no config.pbtxt"}
    assert (list(contents.versions), contents.errors, contents.left_out) == (["pair"], {}, odd)


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"\xff\xfe", b"bell\x07"])
def test_a_name_that_no_reply_can_hold(name: bytes, folder: Path) -> None:
    model = folder / os.fsdecode(name)
    shutil.copytree(folder / "pair", model)
    contents = read_contents(folder)
    assert list(contents.versions) == ["pair"]
    ((shown, error),) = contents.errors.items()
    assert (shown + error).encode()
    assert "is not printable UTF-8" in error
    model.rename(folder / "other")
    assert "other" in read_contents(folder).errors, "its configuration has another name"


def test_a_repository_of_such_a_name(folder: Path) -> None:
    named = folder.rename(folder.with_name(os.fsdecode(b"caf\xe9")))
    assert list(read_repository(named)) == ["pair"]
    (named / "pair/config.pbtxt").write_text("colour: 1")
    assert read_contents(named).errors["pair"].encode()


MODELS: dict[str, tuple[Make, str]] = {
    "a pipe": (os.mkfifo, "Not a regular file"),
    "a socket": (make_socket, "Not a regular file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "a loop": (loop, "Too many levels of symbolic links"),
    "a dangling link": (dangle, "No such file or directory"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_no_file_is_not_an_older_version(kind: str, folder: Path) -> None:
    write_repository(folder, "other")
    make, reason = MODELS[kind]
    newest = folder / "pair_member0/2"
    newest.mkdir()
    make(newest / "model.onnx")
    contents = read_contents(folder)
    assert list(contents.versions) == ["other"]
    assert contents.errors["pair"].endswith(f"{newest / 'model.onnx'} cannot be read: {reason}")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_library_is_not_given_what_it_would_wait_for(make: Make, folder: Path) -> None:
    make(folder / "pair_member0/1/model.onnx.data")
    with pytest.raises(RepositoryError, match=r"model\.onnx\.data is not a regular file"):
        read_repository(folder)


def test_an_old_version_that_cannot_be_read_is_not_needed(folder: Path) -> None:
    shutil.copytree(folder / "pair_member0/1", folder / "pair_member0/2")
    (folder / "pair_member0/1").chmod(0)
    with unprivileged():
        (pair,) = read_contents(folder).versions["pair"]
    assert pair.members[0].model_path == folder / "pair_member0/2/model.onnx"


@pytest.mark.parametrize("name", ["0", "01", "٣", "1.bak", "-1", "9" * 19, "9" * 255])
def test_folders_that_triton_does_not_take_for_versions(name: str, folder: Path) -> None:
    (folder / "pair" / name).mkdir()
    (folder / "pair_member0" / name).mkdir()
    assert read_repository(folder)["pair"].version == "1"


@pytest.mark.parametrize("make", [dangle, loop])
def test_changes_beside_a_link_that_leads_nowhere_are_noticed(make: Make, folder: Path) -> None:
    model = folder / "pair_member0/1/model.onnx"
    make(model.with_name("notes"))
    before = read_stamps(folder)
    os.utime(model, ns=(1, 1))
    changed = read_stamps(folder)
    assert changed != before
    model.with_name("notes").unlink()
    assert read_stamps(folder) != changed


def test_a_folder_gone_or_stale_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repository(folder, "other")
    scan = os.scandir

    for number in (errno.ENOENT, errno.ESTALE, errno.EIO):

        def fail(path: str, number: int = number) -> object:
            if os.fspath(path).endswith("/other"):
                raise OSError(number, os.strerror(number), path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", fail)
        contents = read_contents(folder)
        assert list(contents.versions) == ["pair"]
        assert os.strerror(number) in contents.errors["other"]
        broken = read_stamps(folder)
        monkeypatch.setattr(os, "scandir", scan)
        assert read_stamps(folder) != broken


def test_a_repository_that_cannot_be_read_is_named(folder: Path) -> None:
    folder.chmod(0)
    with unprivileged(), pytest.raises(RepositoryError, match="models cannot be read: Permission denied"):
        read_contents(folder)
    folder.chmod(0o755)
    for path in (folder / "pair/config.pbtxt", Path("a\0b")):
        with pytest.raises(RepositoryError, match="is not a folder"):
            read_contents(path)


@given(st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    """Also with a few bytes of a sound one replaced."""
    target = folder / "pair/config.pbtxt"
    sound = folder / "sound"
    if not sound.exists():
        shutil.copy(target, sound)
    text = sound.read_bytes()
    start = data.draw(st.integers(0, len(text)))
    end = start + data.draw(st.integers(0, 30))
    odd = st.one_of(
        st.binary(max_size=8), st.sampled_from([b"\\ud800", b"\\000", b"[" * 5000, b"1e999", b"-1", b"\\'"])
    )
    target.write_bytes(text[:start] + data.draw(odd) + text[end:])
    contents = read_contents(folder)
    assert set(contents.versions) | set(contents.errors) == {"pair"}
    for error in contents.errors.values():
        assert error.encode()
