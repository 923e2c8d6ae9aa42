"""The health check of containers, run as a script, against servers on this machine."""

import http.server
import os
import runpy
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

SCRIPT = Path(__file__).parents[2] / "server/healthcheck.py"
AUTHORITY = trustme.CA()


class Handler(http.server.BaseHTTPRequestHandler):
    """A gateway that is alive, and not ready."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
        self.wfile.write(b'{"status":\n"alive"}' if self.path == "/healthz" else b'{"detail": "no quorum"}')

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Ignore connections that were closed."""


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    if ":" in host:
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6")
        monkeypatch.setattr(Server, "address_family", socket.AF_INET6)
    with Server((host, 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("COSERVE_"):
            monkeypatch.delenv(name)
    # Nothing answers there.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str, **variables: object
) -> tuple[int, str]:
    """Return the exit status and the only line that is printed."""
    for name, value in variables.items():
        monkeypatch.setenv(f"COSERVE_{name}", str(value))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    output, errors = capsys.readouterr()
    (line,) = (output + errors).splitlines()
    assert bool(errors) is bool(ended.value.code)
    return int(ended.value.code or 0), line


@pytest.mark.parametrize("everywhere", [False, True])
def test_asks_at_the_address_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: Server,
    host: str,
    everywhere: bool,
) -> None:
    listens = {"127.0.0.1": "0.0.0.0", "::1": "::"}[host] if everywhere else host
    url = f"http://[{host}]" if ":" in host else f"http://{host}"
    where = {"HOST": listens, "PORT": server.server_port}
    status, line = check(monkeypatch, capsys, "/healthz", **where)
    assert (status, line) == (0, f'GET {url}:{server.server_port}/healthz: 200 {{"status": "alive"}}')
    status, line = check(monkeypatch, capsys, "/readyz", **where)
    assert (status, line) == (1, f'GET {url}:{server.server_port}/readyz: 503 {{"detail": "no quorum"}}')


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"PORT": ""}, "http://127.0.0.1:8000"),
        ({"PORT": "tcp://10.96.12.7:8001"}, "http://127.0.0.1:8000"),
        ({"port": "9"}, "http://127.0.0.1:9"),
        ({"PORT": " 9 "}, "http://127.0.0.1:9"),
        ({"PORT": "9.0"}, "http://127.0.0.1:9"),
        ({"HOST": "gateway.invalid", "PORT": "9"}, "http://gateway.invalid:9"),
        ({"TLS_CERTIFICATE": "server.pem", "PORT": "9"}, "https://127.0.0.1:9"),
        ({"PORT": "0"}, "http://127.0.0.1:0"),
    ],
)
def test_says_what_it_asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    url: str,
) -> None:
    if url.endswith(":8000"):
        monkeypatch.setattr("http.client.HTTPConnection.connect", refuse)
    status, line = check(monkeypatch, capsys, "/readyz", **variables)
    assert status == 1
    assert line.startswith(f"GET {url}/readyz: ")
    assert len(line) > len(f"GET {url}/readyz: ")


def refuse(_: object) -> None:
    raise ConnectionRefusedError("refused")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
@pytest.mark.parametrize("host", ["127.0.0.1"], indirect=True)
def test_reads_the_settings_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f"\ufeffhost = '127.0.0.1'\nport = {server.server_port}\n", "utf-8")
    assert check(monkeypatch, capsys, "/healthz", CONFIG=file)[0] == 0
    assert check(monkeypatch, capsys, "/healthz", CONFIG=file, PORT="9")[0] == 1
    file.write_text("host =")
    assert check(monkeypatch, capsys, "/healthz", CONFIG=file, PORT=server.server_port)[0] == 0


@pytest.mark.parametrize("host", ["127.0.0.1"], indirect=True)
@pytest.mark.parametrize("mutual", [False, True])
def test_tls(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: Server,
    tmp_path: Path,
    mutual: bool,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("gateway.example").configure_cert(context)
    if mutual:
        AUTHORITY.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    variables = {"PORT": server.server_port, "TLS_CERTIFICATE": "server.pem"}
    if not mutual:
        assert check(monkeypatch, capsys, "/healthz", **variables)[0] == 0
        assert check(monkeypatch, capsys, "/readyz", **variables)[0] == 1
        return
    variables["TLS_CLIENT_AUTHORITIES"] = "clients.pem"
    status, line = check(monkeypatch, capsys, "/healthz", **variables)
    assert status == 0, "it is alive"
    assert "it requires a client's certificate" in line
    status, line = check(monkeypatch, capsys, "/readyz", **variables)
    assert status == 1
    assert "set COSERVE_HEALTHCHECK_CERTIFICATE" in line
    certificate = AUTHORITY.issue_cert("health@example.com")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    variables["HEALTHCHECK_CERTIFICATE"] = tmp_path / "client.pem"
    assert check(monkeypatch, capsys, "/healthz", **variables)[1].endswith('200 {"status": "alive"}')
    variables["HEALTHCHECK_CERTIFICATE"] = tmp_path / "missing.pem"
    status, line = check(monkeypatch, capsys, "/healthz", **variables)
    assert status == 1
    assert line.endswith("COSERVE_HEALTHCHECK_CERTIFICATE and _KEY cannot be used: No such file or directory")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["closed", "not TLS"])
def test_with_mutual_tls_only_a_refused_certificate_is_a_sign_of_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    def respond() -> None:
        with listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=respond)
        thread.start()
        variables = {
            "PORT": listener.getsockname()[1],
            "TLS_CERTIFICATE": "server.pem",
            "TLS_CLIENT_AUTHORITIES": "clients.pem",
        }
        status, line = check(monkeypatch, capsys, "/healthz", **variables)
        thread.join(60)
    assert status == 1
    assert "certificate" not in line
