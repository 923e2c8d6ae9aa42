"""Image files as BYTES, over HTTP and gRPC."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as messages

from tests.server.api.application import INFER, LENGTH, Server, error
from tests.server.api.grpc.calls import Served, failure, logits, run
from tests.server.fake_engine import ReadingEngine, ensemble, png

FILES = [png("red"), png("lime"), png("blue")]


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(ReadingEngine(ensemble()), max_images=4)


@pytest.fixture(scope="module")
def wanted(server: Server) -> Any:
    """The logits of `/v1`, which sorts them by size."""
    reply = server.ask("POST", "/v1/classify", files=[("files", ("a", file)) for file in FILES]).json()
    ordered = [sorted(one["predictions"], key=lambda row: row["class_id"]) for one in reply["results"]]
    return [[row["logit"] for row in rows] for rows in ordered]


def prefixed(files: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def json_of(shape: list[int], **tensor: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "images", "datatype": "BYTES", "shape": shape} | tensor]}


def binary_of(shape: list[int], data: bytes, size: int | str | None = None) -> dict[str, Any]:
    size = len(data) if size is None else size
    head = json.dumps(json_of(shape, parameters={"binary_data_size": size})).encode()
    return {"content": head + data, "headers": {LENGTH: str(len(head))}}


TEXTS = [base64.b64encode(file).decode() for file in FILES]
SIZES = ",".join(str(len(file)) for file in FILES)
FORMS: dict[str, dict[str, Any]] = {
    "elements": binary_of([3], prefixed(FILES)),
    "elements in rows": binary_of([3, 1], prefixed(FILES)),
    "files without their lengths": binary_of([3], b"".join(FILES), SIZES),
    "base64": {"json": json_of([3], data=TEXTS)},
    "base64 in rows": {"json": json_of([3, 1], data=[[text] for text in TEXTS])},
    "data URIs": {"json": json_of([3], data=[f"data:image/png;base64,{text}" for text in TEXTS])},
}


@pytest.mark.parametrize("form", FORMS)
def test_files_get_the_logits_that_v1_gives_them(server: Server, wanted: Any, form: str) -> None:
    (output,) = server.infer(**FORMS[form]).json()["outputs"]
    assert output["shape"] == [3, 2]
    np.testing.assert_allclose(output["data"], np.ravel(wanted), rtol=1e-6)


def test_one_file_needs_only_its_size(server: Server, wanted: Any) -> None:
    (output,) = server.infer(**binary_of([1], FILES[1], str(len(FILES[1])))).json()["outputs"]
    np.testing.assert_allclose(output["data"], wanted[1], rtol=1e-6)


def test_tritonclient_s_own_bytes(server: Server, wanted: Any) -> None:
    tensor = triton.InferInput("images", [3, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[file] for file in FILES], dtype=object))
    body, length = triton.InferenceServerClient.generate_request_body([tensor])
    response = server.infer(content=body, headers={LENGTH: str(length)})
    data = response.content[int(response.headers[LENGTH]) :]
    np.testing.assert_allclose(np.frombuffer(data, np.float32), np.ravel(wanted), rtol=1e-6)


ELEMENTS = prefixed(FILES)
MISFITS: dict[str, tuple[dict[str, Any], int, str]] = {
    "too few": (binary_of([3], prefixed(FILES[:2])), 400, "the data is not 3 elements"),
    "too many": (binary_of([2], ELEMENTS), 400, "the data is not 2 elements"),
    "cut off": (binary_of([3], ELEMENTS[:-1]), 400, "the data is not 3 elements"),
    "cut off in a length": (
        binary_of([2], prefixed(FILES[:1]) + b"\0\0\0"),
        400,
        "the data is not 2 elements",
    ),
    "a length beyond the data": (binary_of([1], b"\xff" * 9), 400, "the data is not 1 elements"),
    "an empty file": (binary_of([1], bytes(4)), 400, "image 0: "),
    "not an image": (binary_of([2], prefixed([FILES[0], b"text"])), 400, "image 1: "),
    "too many images": (
        binary_of([5], prefixed(FILES + FILES[:2])),
        413,
        "5 images, more than the 4 allowed",
    ),
    "far too many": (binary_of([2**40], bytes(400)), 413, "images, more than the 4 allowed"),
    "sizes of other files": (binary_of([3], ELEMENTS, "1,2"), 400, "binary_data_size says 3"),
    "fewer sizes": (
        binary_of([3], b"".join(FILES[:1]), str(len(FILES[0]))),
        400,
        "3 image files need as many",
    ),
    "sizes in words": (binary_of([1], b"x", "one"), 400, "binary_data_size"),
    "no data": ({"json": json_of([1])}, 400, "1 image files need binary_data_size, or data"),
    "numbers": ({"json": json_of([1], data=[1])}, 400, "texts in base64"),
    "null": ({"json": json_of([1], data=[None])}, 400, "texts in base64"),
    "not base64": ({"json": json_of([2], data=[TEXTS[0], "&"])}, 400, "image 1: not base64"),
    "no batch": ({"json": json_of([], data=TEXTS)}, 400, "image files take [N] or [N, 1]"),
    "an empty batch": ({"json": json_of([0], data=[])}, 400, "image files take [N] or [N, 1]"),
    "rows of two": ({"json": json_of([1, 2], data=TEXTS[:2])}, 400, "image files take [N] or [N, 1]"),
    "both": (
        {"json": json_of([1], data=TEXTS[:1], parameters={"binary_data_size": 0})},
        400,
        "has both data and binary_data_size",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_is_not_as_many_files_is_refused(server: Server, misfit: str) -> None:
    arguments, status, message = MISFITS[misfit]
    assert message in error(server.ask("POST", INFER, **arguments), status)


def test_sizes_as_text_are_for_files_alone(server: Server) -> None:
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 3, 4, 4]}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": "192"}}]}).encode()
    response = server.ask("POST", INFER, content=head + bytes(192), headers={LENGTH: str(len(head))})
    assert "binary_data_size must be a number" in error(response, 400)


def message_of(shape: list[int], raw: list[bytes] = [], contents: list[bytes] = []) -> Any:  # noqa: B006
    message = messages.ModelInferRequest(model_name="pair", raw_input_contents=raw)
    message.inputs.add(name="images", datatype="BYTES", shape=shape).contents.bytes_contents.extend(contents)
    return message


@pytest.mark.parametrize(
    "message",
    [message_of([3], [prefixed(FILES)]), message_of([3, 1], contents=FILES)],
    ids=["raw", "contents"],
)
def test_files_over_grpc(wanted: Any, message: messages.ModelInferRequest) -> None:
    async def test(served: Served) -> None:
        np.testing.assert_allclose(logits(await served.stub.ModelInfer(message)), wanted, rtol=1e-6)

    run(ReadingEngine(ensemble()), test)


def test_what_is_refused_over_grpc() -> None:
    floats = message_of([1])
    floats.inputs[0].contents.fp32_contents.append(1)
    misfits = [
        (message_of([2], contents=FILES), StatusCode.INVALID_ARGUMENT, "bytes_contents has 3"),
        (message_of([2], [ELEMENTS]), StatusCode.INVALID_ARGUMENT, "the data is not 2 elements"),
        (message_of([1], contents=[b"text"]), StatusCode.INVALID_ARGUMENT, "image 0: "),
        (message_of([5], contents=FILES), StatusCode.INVALID_ARGUMENT, "5 images, more than the 4 allowed"),
        (floats, StatusCode.INVALID_ARGUMENT, "BYTES goes in bytes_contents or raw_input_contents"),
    ]

    async def test(served: Served) -> None:
        for message, code, text in misfits:
            fault = await failure(served.stub.ModelInfer(message))
            assert text in str(fault.details())
            assert fault.code() == code

    run(ReadingEngine(ensemble()), test, max_images=4)
