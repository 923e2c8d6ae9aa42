"""Clients of other servers send image files to `coserve serve`, step by step.

The programs are Triton's ensemble_image_client.py, and http_infer_binary_resnet.py and
grpc_infer_binary_resnet.py of OpenVINO Model Server; perf_analyzer itself runs.
"""

import base64
import json
import os
import struct
import subprocess
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
from tests.integration.gateway import BLACK, LIME, RED, classify, logits
from tests.integration.perf_analyzer import counts, perf_analyzer
from tests.server.onnx_repository import write_repository

FILES = [RED, LIME, BLACK]


@pytest.fixture(scope="module", params=[False, True], ids=["announced as tensors", "announced as files"])
def server(request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    repository = write_repository(tmp_path_factory.mktemp("models"))
    return serve(repository, "--grpc-port", "0", announce_files=request.param)


@pytest.fixture(scope="module")
def expected(server: Server) -> np.ndarray:
    reply = classify(server, *FILES, top_k=99).json()
    return np.stack([logits(reply, index) for index in range(len(FILES))])


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_triton_s_ensemble_image_client(server: Server, expected: np.ndarray, module: Any) -> None:
    is_grpc = module is triton_grpc
    with module.InferenceServerClient(
        server.grpc if is_grpc else server.url.removeprefix("http://")
    ) as client:
        described = {"as_json": True} if is_grpc else {}
        metadata = client.get_model_metadata("pair", **described)
        config = client.get_model_config("pair", **described)
        config = config["config"] if is_grpc else config
        assert (len(metadata["inputs"]), len(config["input"])) == (1, 1)
        assert config["max_batch_size"] >= len(FILES)
        batch = np.stack([np.array([file], dtype=bytes) for file in FILES])
        tensor = module.InferInput(metadata["inputs"][0]["name"], batch.shape, "BYTES")
        tensor.set_data_from_numpy(batch)
        output = module.InferRequestedOutput(metadata["outputs"][0]["name"], class_count=1)
        texts = client.infer("pair", [tensor], outputs=[output]).as_numpy("logits")
    best = [int(text.split(b":")[1]) for (text,) in texts]
    assert best == expected.argmax(axis=1).tolist()


def test_openvino_model_server_s_http_client(server: Server, expected: np.ndarray) -> None:
    sizes = ",".join(str(len(file)) for file in FILES)
    tensor = {"name": "images", "shape": [len(FILES)], "datatype": "BYTES"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": sizes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    with server.http() as http:
        reply = http.post("/v2/models/pair/infer", content=head + b"".join(FILES), headers=headers).json()
    (output,) = reply["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, atol=1e-4)


def test_openvino_model_server_s_grpc_client(server: Server, expected: np.ndarray) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        tensor = triton_grpc.InferInput("images", [len(FILES)], "BYTES")
        tensor.set_data_from_numpy(np.array(FILES, dtype=np.object_))
        result = client.infer("pair", [tensor], outputs=[triton_grpc.InferRequestedOutput("logits")])
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)


def test_its_older_grpc_client(server: Server, expected: np.ndarray) -> None:
    message = messages.ModelInferRequest(model_name="pair")
    tensor = message.inputs.add(name="images", datatype="BYTES", shape=[len(FILES)])
    tensor.contents.bytes_contents.extend(FILES)
    with grpc.insecure_channel(server.grpc) as channel:
        response = GRPCInferenceServiceStub(channel).ModelInfer(message)
    values = np.frombuffer(response.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(values.reshape(response.outputs[0].shape), expected, atol=1e-4)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_sends_files(server: Server, tmp_path: Path, protocol: str) -> None:
    with server.http() as http:
        if http.get("/v2/models/pair").json()["inputs"][0]["datatype"] != "BYTES":
            pytest.skip("perf_analyzer sends what is announced")
    binary = perf_analyzer()
    # It sends what it reads, so its file has each element's length too.
    elements = [struct.pack("<I", len(file)) + file for file in FILES]
    content = {"data": [{"images": {"b64": base64.b64encode(element).decode()}} for element in elements]}
    data = tmp_path / "files.json"
    data.write_text(json.dumps(content))
    address = server.grpc if protocol == "grpc" else server.url.removeprefix("http://")
    command = [
        binary,
        "-m",
        "pair",
        "-u",
        address,
        "-i",
        protocol,
        "--input-data",
        data,
        "--request-count",
        "20",
    ]
    environment = os.environ | {"LD_LIBRARY_PATH": str(binary.with_name("lib"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts(done.stdout)[0] == 20


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_s_client_gets_compressed_answers(
    server: Server, expected: np.ndarray, algorithm: str
) -> None:
    batch = np.array([[file] for file in FILES], dtype=object)
    tensor = triton_http.InferInput("images", batch.shape, "BYTES")
    tensor.set_data_from_numpy(batch)
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        result = client.infer(
            "pair", [tensor], request_id="x" * 5000, response_compression_algorithm=algorithm
        )
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)
