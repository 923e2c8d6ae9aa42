"""Inference over gRPC: tensors, streams, deadlines; and that it says what `/v2` says."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc.errors import CODES
from coserve_server.api.problems import KINDS
from tests.server.api.application import IMAGES, LOGITS, ask_app, document
from tests.server.api.grpc.calls import METHOD, Served, failure, logits, request, run
from tests.server.fake_engine import ReadingEngine, ensemble


def engine() -> ReadingEngine:
    return ReadingEngine(ensemble(), ensemble(name="other"))


def test_every_error_has_a_status_in_both_tables() -> None:
    assert CODES.keys() == KINDS.keys()


@pytest.mark.parametrize("raw", [True, False])
def test_tensors_are_bytes_or_numbers(raw: bool) -> None:
    async def test(served: Served) -> None:
        response = await served.stub.ModelInfer(request(raw=raw, id="seven"))
        np.testing.assert_array_equal(logits(response), LOGITS)
        assert (response.model_name, response.model_version, response.id) == ("pair", "1", "seven")
        assert response.parameters["members"].string_param == "m0,m1"
        assert response.parameters["degraded"].bool_param is False
        assert response.parameters["overlap"].double_param > 0
        assert "missing" not in response.parameters

    run(engine(), test)


def test_a_degraded_answer_names_what_is_missing() -> None:
    async def test(served: Served) -> None:
        parameters = (await served.stub.ModelInfer(request())).parameters
        assert parameters["degraded"].bool_param is True
        assert parameters["missing"].string_param == "m1: broke"

    run(ReadingEngine(ensemble(), broken=["m1"]), test, min_members=1)


def test_classification_gives_the_same_texts_as_v2() -> None:
    async def test(served: Served) -> None:
        asked = request()
        asked.outputs.add(name="logits").parameters["classification"].int64_param = 5
        response = await served.stub.ModelInfer(asked)
        (output,) = response.outputs
        assert (output.datatype, list(output.shape)) == ("BYTES", [3, 2])
        texts = []
        data = response.raw_output_contents[0]
        while data:
            size = int.from_bytes(data[:4], "little")
            texts.append(data[4 : 4 + size].decode())
            data = data[4 + size :]
        wanted = [{"name": "logits", "parameters": {"classification": 5}}]
        body = document(binary=False, outputs=wanted)
        rest = await asyncio.to_thread(ask_app, served.app, "POST", "/v2/models/pair/infer", json=body)
        assert texts == rest.json()["outputs"][0]["data"]

    run(engine(), test)


def change(**fields: Any) -> Callable[[messages.ModelInferRequest, dict[str, Any]], None]:
    """Change the input of both requests."""

    def apply(over_grpc: messages.ModelInferRequest, over_http: dict[str, Any]) -> None:
        for name, value in fields.items():
            over_http["inputs"][0][name] = value
            if isinstance(value, list):
                del over_grpc.inputs[0].shape[:]
                over_grpc.inputs[0].shape.extend(value)
            else:
                setattr(over_grpc.inputs[0], name, value)

    return apply


def parameter(where: str, name: str, value: Any) -> Callable[..., None]:
    kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]

    def apply(over_grpc: messages.ModelInferRequest, over_http: dict[str, Any]) -> None:
        if where == "outputs":
            over_grpc.outputs.add(name="logits")
            over_http["outputs"] = [{"name": "logits"}]
        inside = over_grpc if where == "request" else getattr(over_grpc, where)[0]
        setattr(inside.parameters[name], kind, value)
        (over_http if where == "request" else over_http[where][0])["parameters"] = {name: value}

    return apply


def outputs(*names: str) -> Callable[..., None]:
    def apply(over_grpc: messages.ModelInferRequest, over_http: dict[str, Any]) -> None:
        for name in names:
            over_grpc.outputs.add(name=name)
        over_http["outputs"] = [{"name": name} for name in names]

    return apply


def model(name: str, version: str = "") -> Callable[..., None]:
    def apply(over_grpc: messages.ModelInferRequest, over_http: dict[str, Any]) -> None:
        over_grpc.model_name = name
        over_grpc.model_version = version
        over_http["path"] = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")

    return apply


SIDE_BY_SIDE = {
    "an unknown model": (model("cow"), 404, StatusCode.NOT_FOUND),
    "an unknown version": (model("pair", "9"), 404, StatusCode.NOT_FOUND),
    "a version that is no number": (model("pair", "new"), 404, StatusCode.NOT_FOUND),
    "another input": (change(name="image"), 400, StatusCode.INVALID_ARGUMENT),
    "another type": (change(datatype="FP64"), 400, StatusCode.INVALID_ARGUMENT),
    "another shape": (change(shape=[3, 48]), 400, StatusCode.INVALID_ARGUMENT),
    "no images": (change(shape=[0, 3, 4, 4]), 400, StatusCode.INVALID_ARGUMENT),
    "a negative size": (change(shape=[-1, 3, 4, 4]), 400, StatusCode.INVALID_ARGUMENT),
    "another output": (outputs("scores"), 400, StatusCode.INVALID_ARGUMENT),
    "an output twice": (outputs("logits", "logits"), 400, StatusCode.INVALID_ARGUMENT),
    "no classes": (parameter("outputs", "classification", 0), 400, StatusCode.INVALID_ARGUMENT),
    "classes in words": (parameter("outputs", "classification", "3"), 400, StatusCode.INVALID_ARGUMENT),
    "a negative timeout": (parameter("request", "timeout", -1), 400, StatusCode.INVALID_ARGUMENT),
    "a timeout that is no integer": (
        parameter("request", "timeout", 0.5),
        400,
        StatusCode.INVALID_ARGUMENT,
    ),
    "shared memory": (
        parameter("inputs", "shared_memory_region", "mine"),
        400,
        StatusCode.INVALID_ARGUMENT,
    ),
    "an instant to answer": (parameter("request", "timeout", 1), 504, StatusCode.DEADLINE_EXCEEDED),
}


@pytest.mark.parametrize("case", SIDE_BY_SIDE)
def test_statuses_and_texts_are_those_of_v2(case: str) -> None:
    apply, status, code = SIDE_BY_SIDE[case]
    asked = request(raw=False)
    body: dict[str, Any] = document(binary=False)
    apply(asked, body)
    path = body.pop("path", "/v2/models/pair")

    async def test(served: Served) -> None:
        error = await failure(served.stub.ModelInfer(asked))
        rest = await asyncio.to_thread(ask_app, served.app, "POST", f"{path}/infer", json=body)
        assert (rest.status_code, rest.json()["error"]) == (status, error.details())
        assert error.code() is code
        np.testing.assert_array_equal(logits(await served.stub.ModelInfer(request())), LOGITS)

    run(engine(), test)


def test_too_many_images() -> None:
    async def test(served: Served) -> None:
        error = await failure(served.stub.ModelInfer(request()))
        assert error.code() is StatusCode.INVALID_ARGUMENT
        assert error.details() == "3 images, more than the 2 allowed"

    run(engine(), test, max_images=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -2e4])
@pytest.mark.parametrize("raw", [True, False])
def test_values_that_are_not_finite(value: float, raw: bool) -> None:
    async def test(served: Served) -> None:
        images = IMAGES.copy()
        images[-1, -1, -1, -1] = value
        error = await failure(served.stub.ModelInfer(request(images, raw=raw)))
        assert "must have finite values of at most 10000 in magnitude" in str(error.details())

    run(engine(), test)


def other_contents(asked: messages.ModelInferRequest) -> None:
    asked.inputs[0].contents.ClearField("fp32_contents")
    asked.inputs[0].contents.fp64_contents.append(1)


CONTENTS: dict[str, tuple[bool, Callable[[messages.ModelInferRequest], Any], str]] = {
    "a byte too few": (
        True,
        lambda m: m.raw_input_contents.append(m.raw_input_contents.pop()[:-1]),
        "is 576 bytes, raw_input_contents has 575",
    ),
    "a byte too many": (
        True,
        lambda m: m.raw_input_contents.append(m.raw_input_contents.pop() + b"x"),
        "raw_input_contents has 577",
    ),
    "another tensor": (True, lambda m: m.raw_input_contents.append(b""), "has 2 tensors; there is one input"),
    "no data": (True, lambda m: m.ClearField("raw_input_contents"), "fp32_contents has 0"),
    "both": (True, lambda m: m.inputs[0].contents.fp32_contents.append(1), "has both contents and raw_input"),
    "an element too few": (
        False,
        lambda m: m.inputs[0].contents.fp32_contents.pop(),
        "fp32_contents has 572",
    ),
    "elements of another type": (
        False,
        other_contents,
        "goes in fp32_contents or raw_input_contents, not in fp64_contents",
    ),
    "another input": (
        True,
        lambda m: m.inputs.add(name="images"),
        "inputs are 'images', 'images'; pair takes",
    ),
    "no input": (True, lambda m: m.ClearField("inputs"), "inputs are missing; pair takes one, 'images'"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_data_that_does_not_fit_its_shape(case: str) -> None:
    raw, spoil, words = CONTENTS[case]
    asked = request(raw=raw)
    spoil(asked)

    async def test(served: Served) -> None:
        error = await failure(served.stub.ModelInfer(asked))
        assert error.code() is StatusCode.INVALID_ARGUMENT
        assert words in str(error.details())

    run(engine(), test)


def test_empty_contents_beside_bytes_are_no_contents() -> None:
    async def test(served: Served) -> None:
        asked = request()
        asked.inputs[0].contents.SetInParent()
        np.testing.assert_array_equal(logits(await served.stub.ModelInfer(asked)), LOGITS)

    run(engine(), test)


def test_a_message_that_was_cut_off() -> None:
    async def test(served: Served) -> None:
        infer = served.channel.unary_unary(f"{METHOD}ModelInfer")
        error = await failure(infer(request().SerializeToString()[:-1]))
        assert error.code() is StatusCode.INVALID_ARGUMENT
        assert error.details() == "not a ModelInferRequest: the message is broken or cut off"

    run(engine(), test)


def test_a_text_that_clients_would_refuse_for_its_size_is_shortened() -> None:
    async def test(served: Served) -> None:
        error = await failure(served.stub.ModelInfer(request(model="€" * 5000)))
        assert error.code() is StatusCode.NOT_FOUND
        assert str(error.details()).startswith("model '€€€")
        assert str(error.details()).endswith("€…")

    run(engine(), test)
