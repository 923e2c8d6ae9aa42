"""A real server that requires HTTPS and keys, and what it must not reveal."""

import base64
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.integration.conftest import COSERVE, Serve, Server
from tests.integration.gateway import RED, problem, refused
from tests.integration.load import until as wait_until
from tests.server.onnx_repository import write_repository


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repositories `models` and `outside`, and certificates of an authority, a server and a client."""
    folder = tmp_path_factory.mktemp("security")
    write_repository(folder / "models", "pair")
    write_repository(folder / "outside", "secret")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("localhost", "client"):
        issued = authority.issue_cert(name, "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    return folder


def keys(folder: Path, *arguments: str) -> str:
    """Run `coserve keys`."""
    command = [COSERVE, "keys", *arguments, "--file", folder / "keys"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    return keys(folder, "create", "lab")


@pytest.fixture(scope="module")
def admin(folder: Path) -> str:
    return keys(folder, "create", "ops", "--role", "admin")


@pytest.fixture(scope="module")
def server(serve: Serve, folder: Path, key: str, admin: str) -> Server:
    certificate = folder / "localhost.pem"
    return serve(
        folder / "models",
        *("--api-keys-file", str(folder / "keys")),
        *("--tls-certificate", str(certificate), "--tls-key", str(certificate)),
        repository_control=True,
    )


def connect(server: Server, folder: Path, key: str = "", certificate: Path | None = None) -> httpx.Client:
    """Return a client that trusts the authority, and sends a key and a certificate if given."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if certificate:
        context.load_cert_chain(certificate)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=server.url, verify=context, headers=headers, timeout=60, trust_env=False)


def until(http: httpx.Client, key: str, status: int) -> None:
    """Wait until requests with this key get this status."""
    for _ in range(600):
        if http.get("/v1/models", headers={"X-API-Key": key}).status_code == status:
            return
        time.sleep(0.1)
    raise AssertionError(f"the key was not answered with {status}")


def test_a_key_over_https_gets_answers(server: Server, folder: Path, key: str) -> None:
    image = {"content": RED, "headers": {"Content-Type": "image/png"}}
    with connect(server, folder, key) as http:
        assert http.post("/v1/classify", **image).json()["model"] == "pair"
    with connect(server, folder) as http:
        problem(http.post("/v1/classify", **image), 401, "unauthenticated")
        assert "error" in http.post("/v2/models/pair/infer", json={}).json()
        assert http.get("/readyz").status_code == http.get("/v2/health/ready").status_code == 200
    with httpx.Client(base_url=server.url, trust_env=False) as stranger, pytest.raises(httpx.ConnectError):
        stranger.get("/healthz")
    with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.RemoteProtocolError):
        plain.get(server.url.replace("https", "http") + "/healthz")


def test_the_announcement_and_the_command_line_work_with_keys(server: Server, folder: Path, key: str) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    (folder / "photo.jpg").write_bytes(RED)
    command = server.announcement[-1].removeprefix("  try: curl ").replace("YOUR_KEY", key)
    assert key in command
    curl = f"curl --silent --cacert ca.pem {command}"
    output = subprocess.run(curl, shell=True, cwd=folder, capture_output=True, check=True, timeout=60)
    assert b'"model":"pair"' in output.stdout
    environment = os.environ | {"SSL_CERT_FILE": str(folder / "ca.pem"), "COSERVE_URL": server.url}
    for variables, status in (({"COSERVE_API_KEY": key}, 0), ({}, 1)):
        done = subprocess.run(
            [COSERVE, "classify", folder / "photo.jpg"],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
    assert "API key" in done.stderr


def test_keys_come_and_go_while_the_server_runs(server: Server, folder: Path, key: str) -> None:
    with connect(server, folder) as http:
        guest = keys(folder, "create", "guest")
        until(http, guest, 200)
        keys(folder, "revoke", "guest")
        until(http, guest, 401)
        assert http.get("/v1/models", headers={"X-API-Key": key}).status_code == 200


def test_loading_needs_a_key_of_the_role(server: Server, folder: Path, key: str, admin: str) -> None:
    path = "/v2/repository/models/pair/load"
    with connect(server, folder) as http:
        statuses = [http.post(path, headers={"X-API-Key": one}).status_code for one in ("wrong", key, admin)]
    assert statuses == [401, 403, 200]


NAMES = (
    "../outside/secret",
    "..%2Foutside%2Fsecret",
    "%2e%2e%2foutside%2fsecret",
    "..%252Foutside%252Fsecret",
    "..%5Coutside%5Csecret",
    "pair/../../outside/secret",
    "pair%2F..%2F..%2Foutside%2Fsecret",
    "pair%00",
    "pair%00/../../outside/secret",
    "%2Fetc%2Fpasswd",
    ".",
    "%2e%2e",
    "%FF",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_repository(server: Server, folder: Path, admin: str, name: str) -> None:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    # Unlike httpx, http.client sends the path unchanged.
    connection = http.client.HTTPSConnection(server.url.removeprefix("https://"), timeout=60, context=context)
    for method, path in (
        ("GET", f"/v1/models/{name}"),
        ("POST", f"/v1/classify?model={name}"),
        ("GET", f"/v2/models/{name}/config"),
        ("GET", f"/v2/models/pair/versions/{name}"),
        ("POST", f"/v2/repository/models/{name}/load"),
        ("POST", f"/v2/repository/models/{name}/unload"),
    ):
        connection.request(method, path, RED, {"X-API-Key": admin, "Content-Type": "image/png"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status in {400, 404}, (path, body)
        assert str(folder).encode() not in body
    connection.close()
    with connect(server, folder, admin) as trusted:
        (model,) = trusted.post("/v2/repository/index").json()
    assert (model["name"], model["state"], model["reason"]) == ("pair", "READY", "")


def test_mutual_tls_lets_only_certified_clients_connect(serve: Serve, folder: Path) -> None:
    file = folder / "mutual.toml"
    file.write_text(
        f'default_model = "pair"\nport = 1\ntls_certificate = "{folder / "localhost.pem"}"\n'
        f'tls_key = "{folder / "localhost.pem"}"\ntls_client_authorities = "{folder / "ca.pem"}"\n'
    )
    # The command line's port overrides the file's.
    server = serve(folder / "models", "--config", str(file))
    assert any("pair (default)" in line for line in server.announcement)
    with connect(server, folder, certificate=folder / "client.pem") as http:
        assert http.get("/v1/models").status_code == 200
    # With TLS 1.3 the client learns only after the handshake that it is refused.
    with connect(server, folder) as http, pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        http.get("/healthz")


def shown(server: Server, folder: Path) -> bytes:
    """Return the certificate that a new connection gets."""
    address = httpx.URL(server.url)
    trust = ssl.create_default_context(cafile=folder / "ca.pem")
    plain = socket.create_connection((address.host, address.port), timeout=60)
    with trust.wrap_socket(plain, server_hostname=address.host) as connection:
        got = connection.getpeercert(binary_form=True)
    assert got is not None
    return got


def test_a_renewed_certificate_is_shown_without_a_restart(serve: Serve, folder: Path, tmp_path: Path) -> None:
    served = tmp_path / "pem"
    shutil.copy(folder / "localhost.pem", served)
    server = serve(folder / "models", "--tls-certificate", str(served), "--tls-key", str(served))
    with connect(server, folder) as http:
        assert http.get("/healthz").status_code == 200
        old = shown(server, folder)
        shutil.copy(folder / "client.pem", tmp_path / "new")
        (tmp_path / "new").replace(served)
        wait_until(lambda: shown(server, folder) != old)
        assert http.get("/healthz").status_code == 200, "on the connection opened before"


def test_handshakes_end(serve: Serve, folder: Path) -> None:
    pair = ("--tls-certificate", str(folder / "localhost.pem"), "--tls-key", str(folder / "localhost.pem"))
    server = serve(folder / "models", *pair, head_timeout_ms=500)
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=30) as silent:
        assert silent.recv(100) == b""


def test_what_is_unsafe_or_unusable_stops_the_start(folder: Path) -> None:
    models = ("--repository", folder / "models", "--port", "0")
    assert "set api_keys_file (see coserve keys create)" in refused(*models, "--host", "0.0.0.0")
    pair = ("--tls-certificate", folder / "localhost.pem", "--tls-key", folder / "client.pem")
    assert "client.pem is not the key of the certificate in" in refused(*models, *pair)
    assert "line 1 is not name:role:digest" in refused(*models, "--api-keys-file", folder / "ca.pem")


@pytest.fixture
def logged(folder: Path, key: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of a server that logs at level debug, and the file with its whole output."""
    log = tmp_path / "log"
    options = ["--repository", folder / "models", "--port", "0", "--api-keys-file", folder / "keys"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [COSERVE, "serve", *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COSERVE_LOG_LEVEL": "debug", "PYTHONUNBUFFERED": "1"},
        )
    for _ in range(6000):
        if process.poll() is not None or "try:" in log.read_text():
            break
        time.sleep(0.01)
    announced = re.search(r"Coserve at (\S+)", log.read_text())
    assert announced, log.read_text()
    yield announced[1], log
    process.terminate()
    process.wait(60)


def test_no_log_has_keys_or_images(logged: tuple[str, Path], key: str) -> None:
    url, log = logged
    marker = b"\x89PNG\r\n\x1a\nBROKENIMAGE"
    requests: list[dict[str, Any]] = [
        {"files": {"files": ("a.png", RED)}},
        {"files": {"files": ("a.png", marker)}},
        {"content": marker, "headers": {"Content-Type": "image/png"}},
        {"json": {"images": [base64.b64encode(marker).decode()]}},
        {"content": b'{"images": [BROKENIMAGE', "headers": {"Content-Type": "application/json"}},
        {"content": b"--x\r\nBROKENIMAGE", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    ]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for presented in (key, f"{key}x"):
            for request in requests:
                headers = {"Authorization": f"Bearer {presented}"} | request.get("headers", {})
                http.post("/v1/classify", **request | {"headers": headers})
            http.post("/v2/models/pair/infer", content=marker, headers={"X-API-Key": presented})
    text = log.read_text()
    assert len(re.findall("/problems/", text)) >= 11, "refusals and faults are logged"
    assert key not in text
    for part in (b"BROKENIMAGE", base64.b64encode(marker)[:12], RED[8:24]):
        assert part.decode("latin-1") not in text
        assert repr(part)[2:-1] not in text
