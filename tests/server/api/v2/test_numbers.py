"""Large JSON tensors, which are read in pieces: as a JSON parser reads them, and with the same strictness."""

import json

import numpy as np
import pytest

from coserve_server.api.v2 import numbers, requests
from tests.server.api.application import IMAGES, INFER, LOGITS, Server, document, error
from tests.server.fake_engine import ReadingEngine, ensemble

COUNT = IMAGES.size


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the tests' tensors for large ones."""
    monkeypatch.setattr(numbers, "MIN_BYTES", 100)
    monkeypatch.setattr(requests, "MIN_BYTES", 100)
    monkeypatch.setattr(numbers, "_PIECE_BYTES", 50)


@pytest.fixture
def server() -> Server:
    return Server(ReadingEngine(ensemble()))


def body(data: str, shape: tuple[int, ...] = IMAGES.shape, before: str = "", after: str = "") -> bytes:
    tensor = f'{{"name":"images",{before}"datatype":"FP32","data":{data}{after},"shape":{list(shape)}}}'
    return f'{{"inputs":[{tensor}]}}'.encode()


FLAT = json.dumps(IMAGES.ravel().tolist())
NESTED = json.dumps(IMAGES.tolist())


def infer(server: Server, content: bytes) -> np.ndarray:
    (output,) = server.infer(content=content).json()["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


@pytest.mark.parametrize(
    "content",
    [
        body(FLAT),
        body(NESTED),
        body(NESTED.replace("[", "\n [ ").replace("]", "\t]\r\n")),
        body(FLAT.replace(".0", "e0").replace("[0e0", "[-0.0E+00")),
        json.dumps(document(binary=False)).encode(),
        json.dumps(document(binary=False, id='"data": [1, 2] and \\"data":[3]')).encode(),
        body(FLAT, before=f'"other":{{"data":{FLAT}}},'),
    ],
    ids=["flat", "nested", "spaces", "exponents", "at the end", "texts", "two arrays"],
)
def test_numbers_are_what_json_says(server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    # The other way to read numbers would fail.
    monkeypatch.delattr(requests, "_from_json")
    assert json.loads(content)["inputs"]
    np.testing.assert_array_equal(infer(server, content), LOGITS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FLAT.replace("1.0, 2.0", "1.0 2.0", 1), "needs 144 elements, data has 143"),
        (FLAT.replace(", 2.0,", ", ,", 1), "not JSON"),
        (FLAT.replace("1.0, 2.0", "1.0 2.0", 1).replace("[0.0", "[0.0,0.0"), "not JSON"),
        (FLAT.replace("2.0,", "2..0,", 1), "not JSON"),
        (FLAT.replace("2.0,", "[2.0],", 1), "nested differently"),
        (FLAT[:-1] + ", 1]", "has 145 elements"),
        (NESTED.replace("], [", "[,] ", 1), "not JSON"),
        (NESTED.replace("], [", "][", 1).replace("[0.0", "[0.0, 0.0"), "not JSON"),
        (NESTED.replace("0.0, 1.0", "0.0], [1.0", 1), "nested differently"),
        (NESTED.replace("[[[[", "[[[").replace("]]]]", "]]]"), "nested differently"),
        (FLAT.replace("2.0,", f"{10**400},", 1), "too large"),
        (FLAT + "]", "nested differently"),
        (FLAT.replace("2.0,", "NaN,", 1), "must have finite values"),
        (FLAT.replace("2.0,", "true,", 1), "only numbers"),
        (FLAT.replace("2.0,", "false,", 1), "only numbers"),
        (FLAT.replace("2.0,", "null,", 1), "only numbers"),
        (FLAT.replace("2.0,", "nan,", 1), "not JSON"),
    ],
)
def test_what_is_not_json_or_not_the_shape_is_refused(server: Server, data: str, message: str) -> None:
    assert message in error(server.ask("POST", INFER, content=body(data)), 400)
    assert server.engine.given == []


def test_numbers_elsewhere_are_not_the_tensor(server: Server) -> None:
    content = f'{{"data":{FLAT},"inputs":[{{"name":"images","datatype":"FP32","shape":[3,3,4,4]}}]}}'.encode()
    assert "has neither data nor" in error(server.ask("POST", INFER, content=content), 400)


def test_numbers_are_no_image_files(server: Server) -> None:
    content = body(FLAT, (1,)).replace(b"FP32", b"BYTES")
    assert "not base64" in error(server.ask("POST", INFER, content=content), 400)


def test_large_requests_have_no_other_long_lists(server: Server) -> None:
    content = body("null", after=f',"unknown":{[True] * 3000}'.lower())
    assert "far more than 64 values" in error(server.ask("POST", INFER, content=content), 413)
