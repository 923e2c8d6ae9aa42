"""Triton's own gRPC clients against `coserve serve`, unchanged; and how it stops while they ask."""

import asyncio
import contextlib
import queue
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import member_logits, refused, until_ready
from tests.integration.load import until as wait_until
from tests.integration.test_v2_clients import COLOURS, IMAGES
from tests.server.api.grpc.calls import METHOD, request
from tests.server.onnx_repository import LABELS, write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "pair", weights=[1.0, 3.0])
    return write_repository(folder, "other")


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--grpc-port", "0", repository_control=True, serve_members=True)


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def expected(repository: Path) -> np.ndarray:
    members = [member_logits(repository, "pair", tuple(colour)) for colour in COLOURS.tolist()]
    return np.stack([m[0] / 4 + m[1] * 3 / 4 for m in members])


def tensor(images: np.ndarray = IMAGES, module: Any = triton) -> Any:
    input_ = module.InferInput("images", list(images.shape), "FP32")
    input_.set_data_from_numpy(np.ascontiguousarray(images))
    return input_


def test_descriptions(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pair")
    assert client.is_model_ready("pair", "1")
    assert client.get_server_metadata(as_json=True)["name"] == "coserve"
    assert client.get_model_metadata("pair", as_json=True)["inputs"] == [
        {"name": "images", "datatype": "FP32", "shape": ["-1", "3", "8", "8"]}
    ]
    config = client.get_model_config("pair").config
    assert (config.max_batch_size, config.input[0].dims) == (8, [3, 8, 8])
    assert "labels" in config.parameters


def test_inference(client: triton.InferenceServerClient, expected: np.ndarray) -> None:
    result = client.infer("pair", [tensor()], request_id="a 7 é", priority=0, timeout=5_000_000)
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("a 7 é", "pair", "1")
    assert response.parameters["members"].string_param == "pair_member0,pair_member1"
    many = client.infer("pair", [tensor(np.concatenate([IMAGES] * 7))])
    np.testing.assert_allclose(many.as_numpy("logits"), np.concatenate([expected] * 7), atol=1e-4)
    alone = client.infer("pair_member1", [tensor()])
    assert alone.get_response().parameters["members"].string_param == "pair_member1"


def test_classification(client: triton.InferenceServerClient, expected: np.ndarray) -> None:
    output = triton.InferRequestedOutput("logits", class_count=2)
    answered = client.infer("pair", [tensor()], outputs=[output]).as_numpy("logits")
    assert answered.shape == (3, 2)
    for row, wanted in zip(answered, expected, strict=True):
        for text, index in zip(row, np.argsort(-wanted), strict=False):
            value, class_id, label = text.decode().split(":")
            assert (int(class_id), label) == (index, LABELS[index])
            assert float(value) == pytest.approx(wanted[index], abs=1e-4)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: triton.InferenceServerClient, expected: np.ndarray, algorithm: str) -> None:
    result = client.infer("pair", [tensor()], compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)


def test_many_requests_at_once_get_their_own_answers(
    client: triton.InferenceServerClient, expected: np.ndarray
) -> None:
    got: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for index in range(24):
        client.async_infer(
            "pair",
            [tensor(IMAGES[[index % 3]])],
            lambda result, error, index=index: got.put((index, result, error)),
        )
    for _ in range(24):
        index, result, error = got.get(timeout=60)
        assert error is None
        np.testing.assert_allclose(result.as_numpy("logits")[0], expected[index % 3], atol=1e-4)


def test_a_stream(client: triton.InferenceServerClient, expected: np.ndarray) -> None:
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    for index in range(100):
        client.async_stream_infer(
            "cow" if index == 50 else "pair", [tensor(IMAGES[[index % 3]])], request_id=str(index)
        )
    for index in range(100):
        result, error = got.get(timeout=60)
        if index == 50:
            assert "model 'cow' is not served" in str(error)
            continue
        assert (error, result.get_response().id) == (None, str(index))
        np.testing.assert_allclose(result.as_numpy("logits")[0], expected[index % 3], atol=1e-4)
    client.stop_stream()


def test_the_asynchronous_client(server: Server, expected: np.ndarray) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index in range(9):
            yield {
                "model_name": "pair",
                "inputs": [tensor(IMAGES[[index % 3]], triton_aio)],
                "request_id": str(index),
            }

    async def go() -> None:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_model_ready("pair")
            results = await asyncio.gather(
                *(client.infer("pair", [tensor(module=triton_aio)]) for _ in range(8))
            )
            for result in results:
                np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)
            index = 0
            async for result, error in client.stream_infer(requests()):
                assert (error, result.get_response().id) == (None, str(index))
                index += 1
            assert index == 9

    asyncio.run(go())


def test_errors_have_their_status(server: Server, client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="model 'cow' is not served") as error:
        client.infer("cow", [tensor()])
    assert error.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match="shared memory, tracing and log settings are not"):
        client.get_system_shared_memory_status()
    # A running server may answer within the shortest timeout.
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(InferenceServerException, match=r"StatusCode.DEADLINE_EXCEEDED"):
            client.infer("pair", [tensor()], client_timeout=0.2)
    finally:
        server.process.send_signal(signal.SIGCONT)
    client.infer("pair", [tensor()], client_timeout=30)


def test_statistics_are_those_over_http(server: Server, client: triton.InferenceServerClient) -> None:
    client.infer("other", [tensor()])
    (over_grpc,) = client.get_inference_statistics("other").model_stats
    with server.http() as http:
        (over_http,) = http.get("/v2/models/other/stats").json()["model_stats"]
    assert over_grpc.inference_count == over_http["inference_count"] >= 3
    assert over_grpc.inference_stats.success.ns == over_http["inference_stats"]["success"]["ns"] > 0


def test_models_are_unloaded_and_loaded(client: triton.InferenceServerClient) -> None:
    def states() -> dict[str, str]:
        return {model.name: model.state for model in client.get_model_repository_index().models}

    assert states()["other"] == "READY"
    client.unload_model("other")
    assert states().get("other") != "READY"
    with pytest.raises(InferenceServerException, match=r"StatusCode.NOT_FOUND"):
        client.infer("other", [tensor()])
    client.load_model("other")
    assert states()["other"] == "READY"
    assert client.infer("other", [tensor()]).as_numpy("logits").shape == (3, 4)
    with pytest.raises(InferenceServerException, match="has no ensemble 'cow'") as error:
        client.load_model("cow")
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="as the repository has them"):
        client.load_model("other", config="{}")


def test_it_stops_as_over_http(serve: Serve, repository: Path) -> None:
    server = serve(repository, "--grpc-port", "0", drain_delay_ms=2000)
    with (
        grpc.insecure_channel(server.grpc) as channel,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest()
        assert health.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
        ended: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: ended.put((result, error)))
        client.async_stream_infer("pair", [tensor()])
        assert ended.get(timeout=60)[1] is None
        server.process.send_signal(signal.SIGTERM)
        until_ready(server, ready=False)
        assert health.Check(asked).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert client.infer("pair", [tensor()]).as_numpy("logits").shape == (3, 4)
        client.async_stream_infer("pair", [tensor()])
        assert ended.get(timeout=60)[1] is None, "streams go on until the server stops"
        assert "the server is stopping" in str(ended.get(timeout=60)[1])
    assert server.process.wait(60) == 0


def test_a_call_in_progress_is_answered_after_the_sockets_are_closed(serve: Serve, repository: Path) -> None:
    server = serve(repository, "--grpc-port", "0")
    sent: queue.Queue[bytes] = queue.Queue()
    with grpc.insecure_channel(server.grpc) as channel, server.http() as http:
        infer = channel.stream_unary(f"{METHOD}ModelInfer")
        answer = infer.future(iter(sent.get, b""))
        wait_until(lambda: "coserve_requests_in_flight 1.0" in http.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server))
        sent.put(request(IMAGES).SerializeToString())
        assert b"pair_member0" in answer.result(timeout=60)
        sent.put(b"")
    assert server.process.wait(60) == 0


def refuses(server: Server) -> bool:
    """Return whether neither port takes connections any more."""
    addresses = [httpx.URL(server.url).netloc.decode(), server.grpc]
    for address in addresses:
        host, _, port = address.rpartition(":")
        with contextlib.suppress(ConnectionError), socket.create_connection((host, int(port)), 20):
            return False
    return True


def test_the_start(serve: Serve, repository: Path, server: Server) -> None:
    port = server.grpc.rpartition(":")[2]
    line = refused("--repository", repository, "--port", "0", "--grpc-port", port)
    assert line.startswith(f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose ")
    without = serve(repository)
    assert not [line for line in without.announcement if "gRPC" in line]
    with (
        grpc.insecure_channel(httpx.URL(without.url).netloc.decode()) as channel,
        pytest.raises(grpc.RpcError),
    ):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
