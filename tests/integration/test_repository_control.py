"""Loading and unloading over Triton's model repository extension, with Triton's own client."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify, problem
from tests.integration.load import Load, check_versions_are_not_mixed, logits_by_version, until
from tests.server.onnx_repository import add_version, write_repository


def client(server: Server) -> triton_http.InferenceServerClient:
    return triton_http.InferenceServerClient(server.url.removeprefix("http://"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_repository(tmp_path, "pair")
    return write_repository(tmp_path, "single", members=1)


def test_load_takes_over_the_files_as_they_are(serve: Serve, repository: Path) -> None:
    server = serve(repository, repository_poll_ms=0, repository_control=True)
    triton = client(server)
    with Load(server) as load:
        for version in range(2, 6):
            add_version(repository, "pair", version)
            triton.load_model("pair")
            # The response comes once the new version is served.
            assert classify(server, RED, model="pair").json()["version"] == str(version)
        triton.load_model("pair")
        load.wait_for_more()
    assert load.failures == []
    known = logits_by_version(repository, range(1, 6))
    assert check_versions_are_not_mixed(load.answers, known) <= set(known)


def test_unload_lets_requests_finish_and_lasts(serve: Serve, repository: Path) -> None:
    server = serve(repository, repository_poll_ms=30, repository_control=True)
    triton = client(server)
    with Load(server, "single") as others, begun(server, "pair") as finish:
        triton.unload_model("pair", unload_dependents=True)
        assert not triton.is_model_ready("pair")
        problem(classify(server, RED, model="pair"), 404, "unknown-model")
        unloaded = {"name": "pair", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        single, pair = triton.get_model_repository_index()
        assert (single["name"], pair) == ("single", unloaded)
        assert finish()["version"] == "1"
        add_version(repository, "pair", 2)
        # Once the other ensemble's new version is served, this one's files have been polled too.
        add_version(repository, "single", 2)
        until(lambda: classify(server, RED, model="single").json()["version"] == "2")
        assert not triton.is_model_ready("pair")
        triton.load_model("pair")
        assert classify(server, RED, model="pair").json()["version"] == "2"
    assert others.failures == []


def test_a_request_keeps_the_version_it_began_with(serve: Serve, repository: Path) -> None:
    server = serve(repository, repository_poll_ms=0, repository_control=True)
    triton = client(server)
    with begun(server, "pair") as finish:
        for version in (2, 3):
            add_version(repository, "pair", version)
            triton.load_model("pair")
            assert classify(server, RED, model="pair").json()["version"] == str(version)
        assert finish()["version"] == "1"


@contextmanager
def begun(server: Server, model: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Begin a request without its body; yield a function that sends the body and returns the answer."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(
            f"POST /v1/classify?model={model} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(RED)}\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert b"100" in connection.recv(100)

        def finish() -> dict[str, Any]:
            connection.sendall(RED)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), answer
            return dict(json.loads(body))

        yield finish


def test_what_cannot_be_loaded(serve: Serve, repository: Path) -> None:
    server = serve(repository, repository_poll_ms=0, repository_control=True)
    triton = client(server)
    add_version(repository, "pair", 2, cut_off=0)
    with pytest.raises(
        InferenceServerException, match=r"failed to load 'pair': .*pair_member0.*cannot be lo"
    ) as e:
        triton.load_model("pair")
    assert e.value.status() == "400"
    assert classify(server, RED, model="pair").json()["version"] == "1"
    (listed, _) = triton.get_model_repository_index()
    assert (listed["name"], listed["version"], listed["state"]) == ("pair", "1", "READY")
    assert "pair_member0" in listed["reason"]
    with pytest.raises(InferenceServerException, match="has no ensemble 'cow'"):
        triton.load_model("cow")
    with pytest.raises(InferenceServerException, match="no ensemble 'cow' is served"):
        triton.unload_model("cow")
    with pytest.raises(InferenceServerException, match="as the repository has them"):
        triton.load_model("pair", config='{"max_batch_size": 1}')


def test_it_is_off_unless_asked_for(serve: Serve, repository: Path) -> None:
    triton = client(serve(repository))
    for call in (triton.load_model, triton.unload_model):
        with pytest.raises(InferenceServerException, match="set repository_control to true"):
            call("pair")
    assert triton.is_model_ready("pair")
