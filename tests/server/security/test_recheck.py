"""Keys and certificates on a file system that hangs."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coserve_server.security import key_ring, recheck
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import create_key, revoke_key
from coserve_server.security.recheck import Recheck


class Disk:
    """Reads wait while it is silent, but not so long that a test does not end."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()

    def wait_for(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            self.answers.wait(20)
            return function(*arguments)

        return read


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.answers.set()


def test_a_keys_file_that_hangs_holds_nobody_and_counts_when_it_answers(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recheck, "PATIENCE_S", 0.3)
    monkeypatch.setattr(recheck, "SILENCE_S", 0.4)
    monkeypatch.setattr(key_ring, "read_stamp", disk.wait_for(key_ring.read_stamp))
    file = tmp_path / "keys"
    key = create_key(file, "lab", "infer").encode()
    create_key(file, "other", "infer")
    ring = KeyRing(file, interval_s=0)

    async def go() -> None:
        assert await ring.find(key)
        disk.answers.clear()
        began = time.monotonic()
        finding = asyncio.create_task(ring.find(key))
        await asyncio.sleep(0)
        assert not finding.done(), "the loop goes on while a request waits"
        assert await finding
        revoke_key(file, "lab")
        while "has not answered" not in caplog.text:
            assert await ring.find(key)
        assert time.monotonic() - began < 10
        disk.answers.set()
        while "answers again" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await ring.find(key) is None

    asyncio.run(go())
    assert [message.partition(" for ")[0].partition(", ")[0] for message in caplog.messages] == [
        f"api_keys_file: {file}: its file system has not answered",
        f"api_keys_file: {file}: its file system answers again",
    ]


def test_requests_that_come_while_the_file_is_read_wait_for_it(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a key that was revoked long ago could still be used by all but the first of them."""
    monkeypatch.setattr(recheck, "PATIENCE_S", 60)
    monkeypatch.setattr(key_ring, "read_stamp", disk.wait_for(key_ring.read_stamp))
    file = tmp_path / "keys"
    key = create_key(file, "lab", "infer").encode()
    create_key(file, "other", "infer")
    ring = KeyRing(file, interval_s=0)
    revoke_key(file, "lab")

    async def go() -> None:
        disk.answers.clear()
        finding = [asyncio.create_task(ring.find(key)) for _ in range(20)]
        await asyncio.sleep(0)
        assert not any(found.done() for found in finding)
        disk.answers.set()
        assert await asyncio.gather(*finding) == [None] * 20

    asyncio.run(go())


def test_a_check_that_hangs_holds_one_handshake_and_not_for_long(disk: Disk) -> None:
    check = Recheck(disk.wait_for(lambda: None), 0, "files")
    disk.answers.clear()
    took = []
    for _ in range(50):
        began = time.monotonic()
        check.run_in_handshake()
        took.append(time.monotonic() - began)
    assert took[0] >= recheck.HANDSHAKE_PATIENCE_S
    assert sum(took) < 5


def test_files_are_read_even_if_the_system_starts_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    read: list[bool] = []
    check = Recheck(lambda: read.append(True), 0, "files")
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Refused)
        check.run_in_handshake()
    assert read == [True]


def test_a_bug_in_a_check_does_not_end_the_checks(caplog: pytest.LogCaptureFixture) -> None:
    check = Recheck(lambda: [][0], 0, "files")
    for _ in range(2):
        check.run_in_handshake()
    assert caplog.messages == ["checking files failed"] * 2
