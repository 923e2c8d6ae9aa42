"""Fixtures of tests of the command line."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.classify_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as loopback:
        monkeypatch.setenv("COSERVE_URL", loopback.url)
        threading.Thread(target=loopback.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield loopback
        loopback.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "photos"
    (images / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.txt"):
        (images / name).write_bytes(name.encode())
    (images / "folder.jpg").mkdir()
    return images
