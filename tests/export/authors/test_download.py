"""Downloads over https from a server on this machine."""

import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from typer.testing import Result

from coserve_export import DescriptionError, ExportError, download_published

Save = Callable[..., Path]
AUTHORITY = trustme.CA()


@dataclass
class Site:
    """A server's address, its pages by path as status, headers and content, and the paths asked for."""

    address: str
    pages: dict[str, tuple[int, Mapping[str, str], bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, path: str, content: bytes, missing: int = 0) -> str:
        """Serve a file, of which `missing` bytes at the end never arrive; return its link."""
        self.pages[path] = (200, {"Content-Length": str(len(content) + missing)}, content)
        return self.address + path

    def redirect(self, path: str, to: str) -> str:
        self.pages[path] = (302, {"Location": to, "Content-Length": "0"}, b"")
        return self.address + path


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authorities = tmp_path / "authorities.pem"
    AUTHORITY.cert_pem.write_to_path(str(authorities))
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities))
    monkeypatch.setenv("COSERVE_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            status, headers, content = site.pages[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    site = Site(f"https://localhost:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_link_is_downloaded_once(save: Save, site: Site, tmp_path: Path) -> None:
    content = save().read_bytes()
    link = site.add("/releases/download/1.0/a%20b.zip?x=1", content)
    steps: list[tuple[str, int, int]] = []
    for _ in range(2):
        path = download_published(link, lambda *step: steps.append(step))
        assert path.name == "a_b.zip"
        assert path.parent.parent == tmp_path / "cache"
        assert path.read_bytes() == content
    assert len(site.asked) == 1
    assert steps[-1] == ("downloading a_b.zip", len(content), len(content))
    assert download_published(site.add("/releases/download/2.0/a%20b.zip", content)) != path
    assert len(site.asked) == 2


def test_redirects_are_followed_to_https_alone(save: Save, site: Site, tmp_path: Path) -> None:
    content = save().read_bytes()
    moved = site.redirect("/moved.zip", site.add("/a.zip", content))
    assert download_published(moved).read_bytes() == content
    kept = files_in(tmp_path / "cache")
    plain = site.redirect("/plain.zip", "http://localhost:1/a.zip")
    with pytest.raises(
        DescriptionError, match=r"plain.zip cannot be downloaded \(redirected to http://.* not https"
    ):
        download_published(plain)
    assert files_in(tmp_path / "cache") == kept


@pytest.mark.parametrize(("content", "missing", "message"), [
    (b"PK\x03\x04", 5, r"cannot be downloaded \(the connection ended after 4 of 9 bytes\); fetch it"),
    (b"<html>", 0, "^https://localhost:[0-9]+/a.zip is a web page"),
    (b"PK\x03\x04", 0, "^https://localhost:[0-9]+/a.zip is cut off or damaged"),
])  # fmt: skip
def test_half_a_file_and_a_wrong_one_are_not_kept(
    site: Site, content: bytes, missing: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        download_published(site.add("/a.zip", content, missing))
    assert files_in(tmp_path / "cache") == []


def test_without_a_network_the_command_says_what_to_do(coserve: Callable[..., Result]) -> None:
    result = coserve("https://127.0.0.1:1/pyramidnet272.zip")
    assert result.exit_code == 1
    advice = (
        "fetch it in a browser or on another machine, and give the file: coserve export pyramidnet272.zip"
    )
    assert re.fullmatch(rf"error: https://\S+ cannot be downloaded \(.+\); {advice}\n", result.stderr)


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("http://example.org/a.zip", "only https addresses are downloaded"),
        ("https://example.org/", "names no file"),
        ("https://[example/a.zip", "is not an address: Invalid IPv6 URL"),
    ],
)
def test_links_that_are_refused(link: str, message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        download_published(link)
