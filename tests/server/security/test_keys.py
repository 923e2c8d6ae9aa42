import asyncio
import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coserve_server.errors import KeysError
from coserve_server.security.file_stamp import read_stamp
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import ApiKey, create_key, read_keys, revoke_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def find(ring: KeyRing, key: bytes) -> ApiKey | None:
    return asyncio.run(ring.find(key))


def test_a_key_is_random_and_only_its_digest_is_stored(file: Path) -> None:
    first = create_key(file, "lab", "infer")
    second = create_key(file, "ops", "admin")
    assert re.fullmatch(r"coserve_[\w-]{43}", first), "256 bits in base64"
    assert first != second
    assert file.read_text().splitlines() == [
        f"lab:infer:{hashlib.sha256(first.encode()).hexdigest()}",
        f"ops:admin:{hashlib.sha256(second.encode()).hexdigest()}",
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file], "nothing temporary is left"


def test_writing_keeps_comments_links_and_who_may_read_but_not_write(file: Path, tmp_path: Path) -> None:
    file.write_text("# the lab's\n\n")
    file.chmod(0o666)
    link = tmp_path / "link"
    link.symlink_to(file)
    create_key(link, "lab", "infer")
    create_key(link, "labs", "infer")
    revoke_key(link, "lab")
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    file.chmod(0o440)
    create_key(file, "one", "infer")
    revoke_key(file, "one")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.read_text().startswith("# the lab's\n\nlabs:infer:")
    assert [key.name for key in read_keys(link)] == ["labs"]


DIGEST = "a" * 64
OTHER = "b" * 64


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"lab:{DIGEST}", "line 1 is not name:role:digest"),
        (f"lab:root:{DIGEST}", "line 1 is not name:role:digest"),
        (f"ok:infer:{DIGEST}\nlab:infer:coserve_secret", "line 2 is not name:role:digest"),
        (f"lab:infer:{DIGEST}\nlab:infer:{OTHER}", "line 2: the name or the key occurs twice"),
        (f"lab:infer:{DIGEST}\nops:admin:{DIGEST}", "line 2: the name or the key occurs twice"),
        (f"l b:infer:{DIGEST}", "line 1 is not name:role:digest"),
    ],
)
def test_a_broken_file_is_one_line_without_what_is_in_it(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    with pytest.raises(KeysError, match=f"^api_keys_file: {file}, {fault}") as caught:
        read_keys(file)
    assert "secret" not in str(caught.value)


def test_what_cannot_be_done_is_said(file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="keys cannot be read"):
        read_keys(file)
    with pytest.raises(KeysError, match="keys cannot be read"):
        revoke_key(file, "lab")
    with pytest.raises(KeysError, match=r"'a:b' is not a valid key name"):
        create_key(file, "a:b", "infer")
    create_key(file, "lab", "infer")
    with pytest.raises(KeysError, match="already has a key 'lab'"):
        create_key(file, "lab", "admin")
    with pytest.raises(KeysError, match="has no key 'la'; it has lab"):
        revoke_key(file, "la")
    with pytest.raises(KeysError, match="cannot be written"):
        create_key(tmp_path / "missing" / "keys", "lab", "infer")


def change(file: Path, own: int) -> None:
    for count in range(25):
        create_key(file, f"{own}.{count}", "infer")
        if count % 2:
            revoke_key(file, f"{own}.{count - 1}")


def test_changes_at_the_same_time_lose_nothing(file: Path) -> None:
    process_of = multiprocessing.get_context("fork").Process
    processes = [process_of(target=change, args=(file, own)) for own in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    left = {f"{own}.{count}" for own in range(3) for count in (*range(1, 25, 2), 24)}
    assert {key.name for key in read_keys(file)} == left
    assert list(file.parent.iterdir()) == [file]


def test_only_the_whole_key_is_found(file: Path) -> None:
    key = create_key(file, "lab", "admin").encode()
    ring = KeyRing(file)
    found = find(ring, key)
    assert found is not None
    assert (found.name, found.role) == ("lab", "admin")
    stored = hashlib.sha256(key).hexdigest().encode()
    for wrong in (b"", key[:-1], key + b"A", key.swapcase(), stored, bytes.fromhex(stored.decode())):
        assert find(ring, wrong) is None


def test_changes_count_without_a_restart(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = create_key(file, "old", "infer").encode()
    ring = KeyRing(file, interval_s=0)
    new = create_key(file, "new", "infer").encode()
    assert find(ring, new)
    revoke_key(file, "old")
    assert find(ring, old) is None
    whole = file.read_text()
    for broken in (lambda: file.write_text(f"{whole}nonsense"), file.unlink):
        broken()
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert find(ring, new), "a broken file leaves the keys as they are"
            assert find(ring, new)
        (record,) = caplog.records
        assert "the previous keys stay valid" in record.getMessage()
    file.write_text(whole)
    revoke_key(file, "new")
    assert find(ring, new) is None


def test_the_file_is_not_looked_at_on_every_request(file: Path) -> None:
    key = create_key(file, "lab", "infer").encode()
    ring = KeyRing(file, interval_s=3600)
    revoke_key(file, "lab")
    assert find(ring, key)


def test_a_server_without_any_key_does_not_start(file: Path) -> None:
    file.touch()
    with pytest.raises(KeysError, match=f"has no key; make one: coserve keys create NAME --file {file}"):
        KeyRing(file)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("folder", "Is a directory"),
        ("pipe", "Not a regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("dangling", "No such file or directory"),
        ("binary", "Not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_one_line_and_changes_nothing(
    file: Path, kind: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = create_key(file, "lab", "infer")
    ring = KeyRing(file, interval_s=0)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "binary":
        file.write_bytes(b"\x00\xff")
    else:
        file.symlink_to(file if kind == "loop" else "gone")
    for _ in range(2):
        assert find(ring, key.encode()) is not None
    (message,) = caplog.messages
    assert message.startswith(f"api_keys_file: {file} cannot be read: {reason}")
    assert "the previous keys stay valid" in message
    for act in (lambda: read_keys(file), lambda: revoke_key(file, "lab")):
        with pytest.raises(KeysError, match=f"cannot be read: {reason}"):
            act()
    if kind != "dangling":
        with pytest.raises(KeysError, match=r"cannot be (read|written): "):
            create_key(file, "lab", "infer")


def test_a_file_that_cannot_be_locked_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(KeysError, match=f"{file} cannot be locked: No locks available"):
        create_key(file, "lab", "infer")


def test_windows_byte_order_mark_and_line_ends_count_for_nothing(file: Path) -> None:
    file.write_bytes(f"\ufefflab:infer:{DIGEST}\r\nops:admin:{OTHER}\r\n".encode())
    assert [key.name for key in read_keys(file)] == ["lab", "ops"]
    revoke_key(file, "lab")
    assert [key.name for key in read_keys(file)] == ["ops"]


LIKE_KEYS = st.text(alphabet="a:inferdm0123456789\n# \x85", max_size=200).map(str.encode)


@given(st.one_of(st.binary(max_size=200), LIKE_KEYS))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with suppress(KeysError):
        read_keys(file)


def test_a_change_of_permissions_alone_is_noticed(file: Path) -> None:
    """A server that could not read a change tries again once it may."""
    file.touch()
    before = read_stamp(file)
    assert read_stamp(file) == before
    status = file.stat()
    file.chmod(0o640)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (status.st_mtime_ns, status.st_ino)
    assert read_stamp(file) != before
