"""Reading inference requests, without HTTP."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coserve_server.api.v2.requests import read_request
from coserve_server.errors import (
    BadBodyError,
    BodyTooLargeError,
    InvalidParametersError,
    RequestError,
)
from coserve_server.settings import load_settings
from tests.server.api.application import IMAGES, document
from tests.server.fake_engine import ensemble

MODEL = ensemble()
SETTINGS = load_settings(repository="unused")


def read(content: dict[str, Any] | bytes, tensor: bytes = b"", length: str | None = None) -> np.ndarray:
    head = content if isinstance(content, bytes) else json.dumps(content).encode()
    if tensor and length is None:
        length = str(len(head))
    return read_request(MODEL, head + tensor, length, SETTINGS)[1]


@pytest.mark.parametrize("padding", range(4))
def test_a_binary_tensor_may_begin_at_any_byte(padding: int) -> None:
    batch = read(document(id="x" * padding), IMAGES.tobytes())
    assert batch.flags.aligned
    np.testing.assert_array_equal(batch, IMAGES)


def test_an_aligned_tensor_is_not_copied() -> None:
    head = json.dumps(document()).encode()
    body = head + b" " * (-len(head) % 64) + IMAGES.tobytes()
    _, batch = read_request(MODEL, body, str(len(body) - IMAGES.nbytes), SETTINGS)
    assert np.shares_memory(batch, np.frombuffer(body, np.uint8))


def test_json_may_be_flat_or_nested() -> None:
    nested = document(binary=False)
    nested["inputs"][0]["data"] = IMAGES.tolist()
    for content in (document(binary=False), nested):
        batch = read(content)
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, IMAGES)


def test_without_json_the_body_is_one_image() -> None:
    request, batch = read_request(MODEL, IMAGES[:1].tobytes(), "0", SETTINGS)
    np.testing.assert_array_equal(batch, IMAGES[:1])
    assert request.parameters.binary_data_output


def test_null_stands_for_nothing() -> None:
    content = document(binary=False, id=None, outputs=None, parameters=None)
    content["inputs"][0]["parameters"] = None
    np.testing.assert_array_equal(read(content), IMAGES)


def test_unknown_keys_and_parameters_are_left_alone() -> None:
    content = document(binary=False, model_name="x", parameters={"priority": 0, "mine": "y"})
    np.testing.assert_array_equal(read(content), IMAGES)


def changed(binary: bool = False, **tensor: Any) -> dict[str, Any]:
    content = document(binary=binary)
    content["inputs"][0] |= tensor
    return content


SHAPE = r"has shape .*; pair takes \[N, 3, 4, 4\] with N at least 1"
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({}, "inputs: Field required"),
    "no input": ({"inputs": []}, "inputs are missing; pair takes one, 'images'"),
    "two inputs": ({"inputs": document(binary=False)["inputs"] * 2}, "inputs are 'images', 'images'; pair"),
    "name": (changed(name="pixels"), "inputs are 'pixels'; pair takes one, 'images'"),
    "datatype": (changed(datatype="FP64"), "input 'images' is 'FP64'; pair takes 'FP32'"),
    "no batch": (changed(shape=[3, 4, 4]), SHAPE),
    "empty batch": (changed(shape=[0, 3, 4, 4], data=[]), SHAPE),
    "no shape": (changed(shape=[]), SHAPE),
    "channels last": (changed(shape=[3, 4, 4, 3]), SHAPE),
    "negative": (changed(shape=[-3, 3, 4, 4]), SHAPE),
    "rank": (changed(shape=[3] * 1000), SHAPE),
    "huge": (changed(shape=[10**18, 3, 4, 4]), "needs 48000000000000000000 elements, data has 144"),
    "fraction": (changed(shape=[3.0, 3, 4, 4]), r"inputs.0.shape.0: Input should be a valid integer"),
    "too few": (changed(data=[1.0] * 143), "needs 144 elements, data has 143 elements"),
    "nested otherwise": (changed(data=IMAGES.reshape(3, 4, 4, 3).tolist()), "data is nested differently"),
    "partly nested": (changed(data=[*IMAGES[:2].tolist(), 1.0]), "data is nested differently"),
    "ragged": (changed(data=[*IMAGES[:2].tolist(), []]), "data is nested differently"),
    "strings": (changed(data=["1"] * 144), "data must hold only numbers"),
    "booleans": (changed(data=[True] * 144), "data must hold only numbers"),
    "nulls": (changed(data=[None] * 144), "data must hold only numbers"),
    "a number": (changed(data=7), "inputs.0.data: Input should be a valid array"),
    "no data": (changed(data=None), "has neither data nor the parameter binary_data_size"),
    "NaN": (changed(data=[float("nan")] * 144), "finite values of at most 10000 in magnitude"),
    "infinite": (changed(data=[float("-inf")] * 144), "finite values of at most 10000 in magnitude"),
    "large": (changed(data=[1e39] * 144), "finite values of at most 10000 in magnitude"),
    "enormous": (changed(data=[10**400] * 144), "data holds a number too large"),
    "shared memory": (
        changed(binary=True, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 576}),
        "shared memory is not supported",
    ),
    "unknown output": (document(binary=False, outputs=[{"name": "scores"}]), "outputs are 'scores'; pair"),
    "output twice": (document(binary=False, outputs=[{"name": "logits"}] * 2), "pair gives one, 'logits'"),
    "output in shared memory": (
        document(binary=False, outputs=[{"name": "logits", "parameters": {"shared_memory_region": "r"}}]),
        "shared memory is not supported",
    ),
    "no classes": (
        document(binary=False, outputs=[{"name": "logits", "parameters": {"classification": 0}}]),
        "outputs.0.parameters.classification: Input should be greater than or equal to 1",
    ),
    "timeout": (document(binary=False, parameters={"timeout": -1}), "parameters.timeout: Input should be"),
    "id": (document(binary=False, id=7), "id: Input should be a valid string"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_request_that_does_not_fit_says_why(case: str) -> None:
    content, message = MISFITS[case]
    with pytest.raises(InvalidParametersError, match=message) as caught:
        read(content)
    assert len(str(caught.value)) < 300


def test_binary_values_are_checked() -> None:
    for value in (np.nan, np.inf, -3e38):
        images = IMAGES.copy()
        images[1, 2, 3, 3] = value
        with pytest.raises(InvalidParametersError, match="finite values"):
            read(document(), images.tobytes())


def test_sizes_must_agree() -> None:
    with pytest.raises(InvalidParametersError, match=r"of FP32 is 576 bytes, binary_data_size says 572"):
        read(changed(binary=True, parameters={"binary_data_size": 572}), IMAGES.tobytes()[:-4])
    with pytest.raises(BadBodyError, match="575 bytes follow the JSON, binary_data_size says 576"):
        read(document(), IMAGES.tobytes()[:-1])
    with pytest.raises(BadBodyError, match="577 bytes follow the JSON"):
        read(document(), IMAGES.tobytes() + b"x")
    with pytest.raises(BadBodyError, match="1 bytes follow the JSON, binary_data_size says 0"):
        read(document(binary=False), b"x")
    with pytest.raises(BadBodyError, match="0 bytes follow the JSON, binary_data_size says 576"):
        read(document())
    with pytest.raises(InvalidParametersError, match="both data and binary_data_size"):
        read(changed(parameters={"binary_data_size": 576}), IMAGES.tobytes())
    with pytest.raises(InvalidParametersError, match="of FP32 is 192 bytes, binary_data_size says 576"):
        read(b"", IMAGES.tobytes(), "0")


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "9" * 5000, "100000", "٣", "+5", " 5"])
def test_a_wrong_header_length(length: str) -> None:
    with pytest.raises(BadBodyError, match="Inference-Header-Content-Length is"):
        read(document(), IMAGES.tobytes(), length)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 3_000, b'{"a":' * 3_000, b'{"inputs": [1', b"nul"]
)
def test_no_json(body: bytes) -> None:
    with pytest.raises(BadBodyError, match="not JSON"):
        read(body)


@pytest.mark.parametrize("filling", [b"[],", b"0,", b"{},", b'"",', b"[[[["])
def test_more_values_than_a_request_needs_are_not_parsed(filling: bytes) -> None:
    with pytest.raises(BodyTooLargeError, match="values"):
        read(b'{"inputs": [' + filling * 20_000)


@pytest.mark.parametrize("depth", [100, 195, 205])
def test_nesting_ends_at_200(depth: int) -> None:
    body = b'{"inputs": [], "other": ' + b"[" * depth + b"]" * depth + b"}"
    error = InvalidParametersError if depth < 200 else BadBodyError
    with pytest.raises(error, match="inputs are missing" if depth < 200 else "recursion limit"):
        read(body)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400, 10**4000, -1])
@pytest.mark.parametrize("place", ["shape", "binary_data_size", "timeout", "classification"])
def test_numbers_beyond_the_protocols_are_refused(number: int, place: str) -> None:
    content = document(IMAGES[:1])
    if place == "shape":
        content["inputs"][0]["shape"][0] = number
    elif place == "binary_data_size":
        content["inputs"][0]["parameters"]["binary_data_size"] = number
    elif place == "timeout":
        content["parameters"] = {"timeout": number}
    else:
        content["outputs"] = [{"name": "logits", "parameters": {"classification": number}}]
    with pytest.raises(InvalidParametersError, match=place):
        read(content, IMAGES[:1].tobytes())


@settings(max_examples=50, deadline=None)
@given(images=arrays(np.float32, (2, 3, 4, 4), elements=st.floats(-1e4, 1e4, width=32)))
def test_both_encodings_read_the_same(images: np.ndarray) -> None:
    np.testing.assert_array_equal(read(document(images), images.tobytes()), images)
    np.testing.assert_array_equal(read(document(images, binary=False)), images)


KEYS = ["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "timeout"]
KEYS += ["binary_data", "binary_data_size", "binary_data_output", "classification"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@st.composite
def spoilt_requests(draw: st.DrawFn) -> bytes:
    """A valid request with one part replaced by something arbitrary."""
    content = document(IMAGES[:1], binary=False, id="a", outputs=[{"name": "logits", "parameters": {}}])
    part: Any = draw(
        st.sampled_from([content, content["inputs"][0], content["outputs"][0], content["inputs"]])
    )
    key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else [0]))
    part[key] = draw(JSON)
    return json.dumps(content).encode()


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()) | spoilt_requests(),
    tail=st.binary(max_size=8) | st.just(IMAGES[:1].tobytes()),
    length=st.none() | st.text(max_size=4) | st.integers(0, 400).map(str) | st.just("exact"),
)
def test_whatever_is_sent_is_read_or_refused(body: bytes, tail: bytes, length: str | None) -> None:
    length = str(len(body)) if length == "exact" else length
    try:
        _, batch = read_request(MODEL, body + tail, length, SETTINGS)
    except RequestError:
        return
    assert batch.dtype == np.float32
    assert batch.shape[1:] == (3, 4, 4)
    assert np.isfinite(batch).all()
