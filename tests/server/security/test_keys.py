import hashlib
import logging
import multiprocessing
import re
import stat
from pathlib import Path

import pytest

from coserve_server.errors import KeysError
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import create_key, read_keys, revoke_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


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


def test_writing_keeps_comments_links_and_closes_wide_permissions(file: Path, tmp_path: Path) -> None:
    file.write_text("# the lab's\n\n")
    file.chmod(0o644)
    link = tmp_path / "link"
    link.symlink_to(file)
    create_key(link, "lab", "infer")
    create_key(link, "labs", "infer")
    revoke_key(link, "lab")
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
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
    found = ring.find(key)
    assert found is not None
    assert (found.name, found.role) == ("lab", "admin")
    stored = hashlib.sha256(key).hexdigest().encode()
    for wrong in (b"", key[:-1], key + b"A", key.swapcase(), stored, bytes.fromhex(stored.decode())):
        assert ring.find(wrong) is None


def test_changes_count_without_a_restart(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = create_key(file, "old", "infer").encode()
    ring = KeyRing(file, interval_s=0)
    new = create_key(file, "new", "infer").encode()
    assert ring.find(new)
    revoke_key(file, "old")
    assert ring.find(old) is None
    whole = file.read_text()
    for broken in (lambda: file.write_text(f"{whole}nonsense"), file.unlink):
        broken()
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert ring.find(new), "a broken file leaves the keys as they are"
            assert ring.find(new)
        (record,) = caplog.records
        assert "the previous keys stay valid" in record.getMessage()
    file.write_text(whole)
    revoke_key(file, "new")
    assert ring.find(new) is None


def test_the_file_is_not_looked_at_on_every_request(file: Path) -> None:
    key = create_key(file, "lab", "infer").encode()
    ring = KeyRing(file, interval_s=3600)
    revoke_key(file, "lab")
    assert ring.find(key)


def test_a_server_without_any_key_does_not_start(file: Path) -> None:
    file.touch()
    with pytest.raises(KeysError, match=f"has no key; make one: coserve keys create NAME --file {file}"):
        KeyRing(file)
