"""Compressed answers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve_server.api.middleware import compressing
from coserve_server.api.middleware.compressing import choose_encoding
from tests.server.api.application import LENGTH, Server, document
from tests.server.fake_engine import ReadingEngine, ensemble

MANY = np.ones((64, 3, 4, 4), np.float32)


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(ReadingEngine(ensemble()))


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("br, zstd, identity", None),
        ("gzip;q=0", None),
        ("gzip;q=0.000, *", "deflate"),
        ("gzip; q=0.5, deflate;q=0.8", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=x", None),
        ("identity;q=0", None),
    ],
)
def test_the_client_chooses(accepted: str, encoding: str | None) -> None:
    assert choose_encoding(accepted) == encoding


@given(st.text(max_size=40))
def test_any_header_is_read(accepted: str) -> None:
    assert choose_encoding(accepted) in (None, "gzip", "deflate")


@pytest.mark.parametrize("inline_bytes", [0, 2**20])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
@pytest.mark.parametrize("path", ["/openapi.json", "/metrics", "/docs"])
def test_an_answer_is_the_same_when_compressed(
    server: Server, monkeypatch: pytest.MonkeyPatch, inline_bytes: int, encoding: str, path: str
) -> None:
    monkeypatch.setattr(compressing, "INLINE_BYTES", inline_bytes)
    monkeypatch.setattr(compressing, "MIN_BYTES", 500)
    plain = server.ask("GET", path, headers={"Accept-Encoding": "identity"})
    response = server.ask("GET", path, headers={"Accept-Encoding": encoding})
    assert response.headers.get("Content-Encoding", "identity") == encoding
    assert "Accept-Encoding" in response.headers["Vary"]
    if path != "/metrics":
        assert response.content == plain.content
    head = server.ask("HEAD", path, headers={"Accept-Encoding": encoding})
    assert head.headers.get("Content-Encoding", "identity") == encoding
    assert head.content == b""


def test_tensors_are_compressed_for_tritonclient(server: Server) -> None:
    head = document(MANY, id="x" * 5000, parameters={"binary_data_output": True})
    body = json.dumps(head).encode()
    headers = {LENGTH: str(len(body)), "Accept-Encoding": "gzip"}
    response = server.infer(content=body + MANY.tobytes(), headers=headers)
    assert response.headers["Content-Encoding"] == "gzip"
    data = response.content[int(response.headers[LENGTH]) :]
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), 1.5)


def test_small_answers_and_those_with_a_tag_stay_as_they_are(server: Server) -> None:
    for path in (
        "/healthz",
        "/v2",
        "/static-offline-docs/favicon.png",
        "/static-offline-docs/swagger-ui.css",
    ):
        response = server.ask("GET", path, headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in response.headers
        assert len(response.content) == int(response.headers["Content-Length"])


def test_what_does_not_become_smaller_stays_as_it_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressing, "_pack", lambda content, encoding: content)
    response = server.ask("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers
    assert response.headers["Vary"] == "Accept-Encoding"


def test_errors_are_compressed_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressing, "MIN_BYTES", 100)
    response = server.ask("GET", f"/v2/models/{'cow' * 200}", headers={"Accept-Encoding": "deflate"})
    assert (response.status_code, response.headers["Content-Encoding"]) == (404, "deflate")
    assert "is not served" in response.json()["error"]
