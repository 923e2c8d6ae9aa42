"""Responses of `coserve serve` to requests that are invalid, too large, too slow or too many."""

import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify, problem
from tests.server.onnx_repository import write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("models"), "pair")
    return write_repository(folder, "single", members=1)


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(
        repository, "--default-model", "pair", max_body_bytes=200_000, max_images=20, max_pixels=10_000
    )


def test_a_bad_image_is_named(server: Server) -> None:
    detail = problem(classify(server, RED, b"nonsense"), 400, "bad-image")
    assert detail.startswith("image 1 (1.png): not an image in a supported format (JPEG, PNG,")


def test_a_truncated_image_is_named(server: Server) -> None:
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "JPEG")
    assert "image 0 (0.png): broken or truncated" in problem(
        classify(server, noise.getvalue()[:700]), 400, "bad-image"
    )


def test_too_many_pixels(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (200, 200)).save(file, "PNG")
    assert "200 x 200 pixels, more than the 10000" in problem(
        classify(server, file.getvalue()), 400, "bad-image"
    )


def test_an_unknown_model(server: Server) -> None:
    assert "choose from pair, single" in problem(classify(server, RED, model="cow"), 404, "unknown-model")
    with server.http() as http:
        problem(http.get("/v1/models/cow"), 404, "unknown-model")


def test_a_body_that_says_it_is_too_large(server: Server) -> None:
    detail = problem(classify(server, bytes(300_000)), 413, "body-too-large")
    assert detail == "the body has more than the 200000 bytes allowed"


def test_an_answer_before_the_end_of_the_body_arrives(server: Server) -> None:
    """A client that sends more than the server reads still gets the problem, every time."""
    for path, status in (
        ("/v1/classify?model=pair", 413),
        ("/v1/nowhere", 404),
        ("/v1/classify?top_k=x", 422),
    ):
        for _ in range(5):
            with server.http() as http:
                response = http.post(path, content=bytes(8_000_000), headers={"Content-Type": "image/png"})
                assert response.status_code == status
                assert response.headers["Connection"] == "close"


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=b"])
def test_a_body_that_turns_out_too_large(server: Server, content_type: str) -> None:
    """The body is chunked, without a length; the server responds before its end."""
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    with server.http() as http:
        response = http.post(
            "/v1/classify",
            content=iter([head, *[bytes(50_000)] * 4, b"x"]),
            headers={"Content-Type": content_type},
        )
    problem(response, 413, "body-too-large")


@pytest.mark.parametrize("count", [21, 22, 60])
def test_too_many_images(server: Server, count: int) -> None:
    assert "more than the 20" in problem(classify(server, *[RED] * count), 413, "too-many-images")


BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no type": ({"content": RED}, 415, "unsupported-type", "Content-Type is missing"),
    "form": ({"data": {"a": "b"}}, 415, "unsupported-type", "application/x-www-form-urlencoded"),
    "text": ({"content": RED, "headers": {"Content-Type": "text/plain"}}, 415, "unsupported-type", "image/*"),
    "svg": (
        {"content": b"<svg/>", "headers": {"Content-Type": "image/svg+xml"}},
        400,
        "bad-image",
        "image 0: not an image in a supported format",
    ),
    "empty image": ({"content": b"", "headers": {"Content-Type": "image/png"}}, 400, "bad-image", "image 0"),
    "not JSON": (
        {"content": b"{images", "headers": {"Content-Type": "application/json"}},
        400,
        "bad-body",
        "not JSON",
    ),
    "not UTF-8": (
        {"content": b'{"images": ["\xff"]}', "headers": {"Content-Type": "application/json"}},
        400,
        "bad-body",
        "not JSON",
    ),
    "no images": ({"json": {"images": []}}, 422, "invalid-parameters", "no image"),
    "missing key": ({"json": {}}, 422, "invalid-parameters", "images: Field required"),
    "unknown key": (
        {"json": {"images": [], "model": "x"}},
        422,
        "invalid-parameters",
        "model: unknown; allowed are images",
    ),
    "a number": (
        {"json": {"images": [7]}},
        422,
        "invalid-parameters",
        "images.0: Input should be a valid string",
    ),
    "not base64": ({"json": {"images": ["&"]}}, 400, "bad-image", "image 0: not base64"),
    "another field": (
        {"files": {"file": RED}},
        422,
        "invalid-parameters",
        "unknown multipart field 'file'; images go in 'files'",
    ),
    "no file name": ({"files": {"files": (None, b"x")}}, 422, "invalid-parameters", "has no file name"),
    "no boundary": (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "bad-body",
        "Missing boundary",
    ),
    "broken multipart": (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        400,
        "bad-body",
        "multipart body",
    ),
    "top_k": ({"params": {"top_k": 0}}, 422, "invalid-parameters", "top_k: Input should be greater than"),
    "deadline": (
        {"headers": {"Request-Timeout-Ms": "0"}},
        422,
        "invalid-parameters",
        "Request-Timeout-Ms: '0' is not a positive number",
    ),
    "unknown parameter": (
        {"params": {"topk": 1}},
        422,
        "invalid-parameters",
        "topk: unknown; allowed are model, version, top_k, ",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests_say_what_is_wrong(server: Server, case: str) -> None:
    arguments, status, kind, message = BAD_REQUESTS[case]
    with server.http() as http:
        assert message in problem(http.post("/v1/classify", **arguments), status, kind)


def test_wrong_paths_and_methods(server: Server) -> None:
    with server.http() as http:
        assert "/nowhere" in problem(http.get("/nowhere"), 404, "not-found")
        response = http.get("/v1/classify")
    problem(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == "POST"


def test_a_body_that_never_ends_is_given_up(serve: Serve, repository: Path) -> None:
    server = serve(repository, upload_timeout_ms=300)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(
            b"POST /v1/classify?model=pair HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9\r\n\r\nab"
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "/problems/upload-timeout"


def test_too_many_requests_at_once_are_refused(serve: Serve, repository: Path) -> None:
    server = serve(repository, max_requests=1)
    assert "choose from" in problem(classify(server, RED), 422, "invalid-parameters"), "no default"
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as slow:
        slow.sendall(
            b"POST /v1/classify?model=pair HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"100" in slow.recv(100), "the server waits for the body"
        response = classify(server, RED, model="pair")
        assert "the most allowed" in problem(response, 503, "overloaded")
        assert response.headers["Retry-After"]
        with server.http() as http:
            assert http.get("/healthz").status_code == 200
