import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coserve_training.data import download
from coserve_training.data.download import KNOWN, Remote, check_published, fetch
from coserve_training.errors import DataError

CONTENT = bytes(range(256)) * 20_000


class Handler(BaseHTTPRequestHandler):
    """Sends the content for `/whole` and `/moved`, half of it for `/cut`, and 404 for all other paths."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if self.path not in ("/whole", "/cut"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[: len(CONTENT) // 2])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Handler, "requests", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "not made yet" / "cache"
    monkeypatch.setenv("COSERVE_DATA", str(folder))
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, port: int, path: str, content: bytes = CONTENT) -> str:
    url = f"http://127.0.0.1:{port}{path}"
    remote = Remote("set.bin", url, hashlib.md5(content).hexdigest())
    monkeypatch.setitem(KNOWN, "cifar10", (remote,))
    return url


@pytest.mark.parametrize("path", ["/whole", "/moved"])
def test_a_known_name_is_downloaded_once(
    server: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    publish(monkeypatch, server.server_port, path)
    told: list[tuple[str, int, int]] = []
    assert fetch("cifar10", lambda *step: told.append(step)) == [cache / "set.bin"]
    assert (cache / "set.bin").read_bytes() == CONTENT
    assert {(what, total) for what, _, total in told} == {("downloading set.bin", len(CONTENT))}
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert len(told) > 2
    assert told[-1][1] == len(CONTENT)
    asked = len(Handler.requests)
    assert fetch("cifar10") == [cache / "set.bin"]
    assert len(Handler.requests) == asked


def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(
    server: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = publish(monkeypatch, server.server_port, "/cut")
    with pytest.raises(DataError) as error:
        fetch("cifar10")
    assert "\n" not in str(error.value)
    assert f"after {len(CONTENT) // 2} of {len(CONTENT)} bytes" in str(error.value)
    assert str(error.value).endswith(f"fetch {url} and put it at {cache / 'set.bin'}")
    assert list(cache.iterdir()) == []
    publish(monkeypatch, server.server_port, "/whole")
    assert fetch("cifar10")[0].read_bytes() == CONTENT


def test_other_bytes_than_published_do_not_get_the_name(
    server: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server.server_port, "/whole", b"what was published")
    with pytest.raises(DataError, match="sent a file that is not the published one"):
        fetch("cifar10")
    assert list(cache.iterdir()) == []


def test_a_file_that_is_gone_from_the_server(
    server: ThreadingHTTPServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server.server_port, "/gone")
    with pytest.raises(DataError, match=r"cannot be downloaded \(Not Found\)"):
        fetch("cifar10")


def test_without_a_network_the_error_says_what_to_put_where(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = publish(monkeypatch, unused.getsockname()[1], "/whole")
        with pytest.raises(DataError, match="Connection refused") as error:
            fetch("cifar10")
    assert str(error.value).endswith(f"fetch {url} and put it at {cache / 'set.bin'}")
    (cache / "set.bin").write_bytes(CONTENT)
    assert fetch("cifar10") == [cache / "set.bin"]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    "value",
    [
        "socks://127.0.0.1:1080/",
        "http://",
        "http:///x",
        "//",
        "http://[",
        "http://user:secret@a..b:1",
        "http://user:secret@127.0.0.1:port",
        "http://127.0.0.1:9",
        "a b",
        "\udcff",
    ],
)
def test_a_proxy_that_does_not_work_is_named(
    name: str, value: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, 80, "/whole")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=rf"cannot be downloaded \(.*the environment sets .*{name}") as caught:
        fetch("cifar10")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"])
def test_a_variable_that_spoils_https_is_named(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("https_proxy", "")
    monkeypatch.setenv(name, str(tmp_path / "missing" / "file"))
    monkeypatch.setitem(KNOWN, "cifar10", (Remote("set.bin", "https://127.0.0.1:9/whole", ""),))
    with pytest.raises(DataError, match=rf"the environment sets .*{name}"):
        fetch("cifar10")


def test_without_a_home_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_DATA", "~no-such-user/cache")
    with pytest.raises(DataError, match="set COSERVE_DATA"):
        fetch("cifar10")


def test_a_server_that_falls_silent_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(monkeypatch, silent.getsockname()[1], "/whole")
        with pytest.raises(DataError, match="timed out"):
            fetch("cifar10")


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COSERVE_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch("cifar10")


def test_an_archive_called_like_the_published_one_has_its_checksum(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"damaged \(MD5 .*; fetch it again from https://www.cs.toronto.edu"):
        check_published(archive)
    archive.rename(tmp_path / "mine.tar.gz")
    check_published(tmp_path / "mine.tar.gz")
