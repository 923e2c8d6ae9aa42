"""PyTriton's clients, which run themselves, and what others do step by step, against `coserve serve`."""

import asyncio
import queue
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import member_logits
from tests.integration.test_v2_clients import COLOURS, IMAGES
from tests.server.onnx_repository import LABELS, write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--grpc-port", "0")


@pytest.fixture(scope="module")
def expected(repository: Path) -> np.ndarray:
    return np.stack([member_logits(repository, "pair", tuple(colour)).mean(0) for colour in COLOURS.tolist()])


def address(server: Server, protocol: str) -> str:
    return server.grpc if protocol == "grpc" else server.url.removeprefix("http://")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_triton_s_image_client(server: Server, expected: np.ndarray, protocol: str) -> None:
    """It reads the images' layout from the configuration, and has options for asynchronous requests."""
    module: Any = triton_grpc if protocol == "grpc" else triton_http
    described = {"as_json": True} if protocol == "grpc" else {}
    with module.InferenceServerClient(address(server, protocol)) as client:
        metadata = client.get_model_metadata(model_name="pair", model_version="1", **described)
        config = client.get_model_config(model_name="pair", model_version="1", **described)
        config = config.get("config", config)
        (tensor,) = metadata["inputs"]
        assert [len(one) for one in (config["input"], metadata["outputs"])] == [1, 1]
        assert (metadata["outputs"][0]["datatype"], config["input"][0]["format"]) == ("FP32", "FORMAT_NCHW")
        assert config["max_batch_size"] >= len(IMAGES)
        input_ = module.InferInput(tensor["name"], IMAGES.shape, tensor["datatype"])
        input_.set_data_from_numpy(IMAGES)
        outputs = [module.InferRequestedOutput(metadata["outputs"][0]["name"], class_count=2)]
        common = {"request_id": "1", "model_version": "1", "outputs": outputs}
        results = [client.infer("pair", [input_], **common)]
        if protocol == "grpc":
            answers: queue.Queue[Any] = queue.Queue()
            client.async_infer("pair", [input_], lambda result, error: answers.put(error or result), **common)
            results.append(answers.get(timeout=30))
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer("pair", [input_], **common)
            results.append(answers.get(timeout=30))
        else:
            results.append(client.async_infer("pair", [input_], **common).get_result())
    best = [LABELS[row.argmax()] for row in expected]
    for result in results:
        texts = result.as_numpy(metadata["outputs"][0]["name"])
        assert texts.shape == (3, 2)
        assert [text.decode().split(":")[2] for text in texts[:, 0]] == best


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="nvidia-pytriton needs numpy 1")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_pytriton_s_clients(server: Server, expected: np.ndarray, protocol: str) -> None:
    from pytriton.client import AsyncioModelClient, FuturesModelClient, ModelClient

    url = f"{protocol}://{address(server, protocol)}"
    answers = []
    with ModelClient(url, "pair") as client:
        assert client.model_config.max_batch_size >= len(IMAGES)
        answers.append(client.infer_batch(images=IMAGES))
        assert client.infer_sample(IMAGES[0])["logits"].shape == expected[0].shape

    async def ask() -> list[Any]:
        async with AsyncioModelClient(url, "pair") as client:
            return list(await asyncio.gather(*(client.infer_batch(IMAGES) for _ in range(4))))

    answers += asyncio.run(ask())
    # Over gRPC it fails with Triton too: its threads use the client for HTTP.
    if protocol == "http":
        with FuturesModelClient(url, "pair") as client:
            answers += [future.result() for future in [client.infer_batch(IMAGES) for _ in range(4)]]
    for answer in answers:
        np.testing.assert_allclose(answer["logits"], expected, atol=1e-4)


@pytest.mark.parametrize("raw", [False, True])
def test_what_kserve_s_grpc_client_sends(server: Server, expected: np.ndarray, raw: bool) -> None:
    message = messages.ModelInferRequest(model_name="pair", id="q")
    tensor = message.inputs.add(name="images", datatype="FP32", shape=IMAGES.shape)
    if raw:
        message.raw_input_contents.append(IMAGES.tobytes())
    else:
        tensor.contents.fp32_contents.extend(IMAGES.ravel())
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(messages.ServerLiveRequest()).live
        assert stub.ModelReady(messages.ModelReadyRequest(name="pair")).ready
        response = stub.ModelInfer(message)
    assert response.id == "q"
    values = np.frombuffer(response.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(values.reshape(response.outputs[0].shape), expected, atol=1e-4)
