"""Inference over `/v2` with an engine whose answers are known, and errors in the protocol's format."""

import gzip
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_server.api.v1.routes import ClassifyQuery
from coserve_server.observability.record import Record
from coserve_server.settings.section import LONGEST_MS
from tests.server.api.application import IMAGES, INFER, LENGTH, LOGITS, Server, binary, document, error
from tests.server.api.v2.test_requests import spoilt_requests
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble, run


@pytest.fixture
def server() -> Server:
    return Server(ReadingEngine(ensemble()))


def test_a_model_that_may_exist_is_not_unknown() -> None:
    engine = ReadingEngine()
    engine.missing = "no server answers"
    response = Server(engine).ask("POST", INFER, **binary())
    assert error(response, 503) == "no server answers"
    assert response.headers["Retry-After"]


def test_json_both_ways(server: Server) -> None:
    response = server.infer(json=document(binary=False, id="a7"))
    assert response.headers["Content-Type"] == "application/json"
    assert LENGTH not in response.headers
    reply = response.json()
    parameters = reply.pop("parameters")
    assert parameters.pop("overlap") > 0
    assert parameters == {"degraded": False, "members": "m0,m1"}
    assert reply == {
        "id": "a7",
        "model_name": "pair",
        "model_version": "1",
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [3, 2], "data": LOGITS.ravel().tolist()}],
    }


def test_binary_both_ways(server: Server) -> None:
    response = server.infer(**binary())
    assert response.headers["Content-Type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    (output,) = json.loads(response.content[:length])["outputs"]
    assert output == {
        "name": "logits",
        "datatype": "FP32",
        "shape": [3, 2],
        "parameters": {"binary_data_size": 24},
    }
    np.testing.assert_array_equal(np.frombuffer(response.content[length:], "<f4").reshape(3, 2), LOGITS)


@pytest.mark.parametrize(
    ("of_request", "of_output", "is_binary"),
    [(None, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
def test_an_output_overrides_its_request(
    server: Server, of_request: bool | None, of_output: bool | None, is_binary: bool
) -> None:
    parameters = {} if of_request is None else {"binary_data_output": of_request}
    output = {"name": "logits", "parameters": {} if of_output is None else {"binary_data": of_output}}
    response = server.infer(**binary(parameters=parameters, outputs=[output]))
    assert (LENGTH in response.headers) is is_binary


def test_a_body_without_json(server: Server) -> None:
    response = server.infer(content=IMAGES[:1].tobytes(), headers={LENGTH: "0"})
    tensor = response.content[int(response.headers[LENGTH]) :]
    np.testing.assert_array_equal(np.frombuffer(tensor, "<f4"), LOGITS[0])


@pytest.mark.parametrize("as_binary", [False, True])
@pytest.mark.parametrize(("count", "given"), [(1, 1), (2, 2), (9, 2)])
def test_classification(server: Server, as_binary: bool, count: int, given: int) -> None:
    output = {"name": "logits", "parameters": {"classification": count, "binary_data": as_binary}}
    response = server.infer(json=document(IMAGES[:2], binary=False, outputs=[output]))
    length = int(response.headers.get(LENGTH, len(response.content)))
    (output,) = json.loads(response.content[:length])["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, given])
    wanted = [
        text
        for texts in (["47.500000:1:dog", "0.500000:0:cat"], ["95.500000:1:dog", "48.500000:0:cat"])
        for text in texts[:given]
    ]
    if as_binary:
        packed = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in wanted)
        assert output["parameters"] == {"binary_data_size": len(packed)}
        assert response.content[length:] == packed
    else:
        assert output["data"] == wanted


def test_more_images_than_a_batch_holds(server: Server) -> None:
    images = np.concatenate([IMAGES, IMAGES])[:5]
    reply = server.infer(json=document(images, binary=False)).json()
    np.testing.assert_array_equal(reply["outputs"][0]["data"], np.concatenate([LOGITS, LOGITS])[:5].ravel())
    assert [len(batch) for batch in server.engine.given] == [2, 2, 1]


def test_a_degraded_answer_says_so() -> None:
    server = Server(ReadingEngine(ensemble(members=3), broken=["m1"]), min_members=2)
    reply = server.infer(json=document(binary=False)).json()
    assert reply["parameters"].pop("overlap") > 0
    assert reply["parameters"] == {"degraded": True, "members": "m0,m2", "missing": "m1: broke"}
    np.testing.assert_array_equal(reply["outputs"][0]["data"], (LOGITS + np.float32(0.5)).ravel())


def test_below_the_quorum() -> None:
    response = Server(ReadingEngine(ensemble(), broken=["m1"])).ask("POST", INFER, **binary())
    assert "m1: broke" in error(response, 503)
    assert response.headers["Retry-After"]


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [({"Request-Timeout-Ms": "0.001"}, {}), ({"Request-Timeout-Ms": "5e-324"}, {}), ({}, {"timeout": 1})],
)
def test_a_request_may_shorten_the_deadline(headers: dict[str, str], parameters: dict[str, int]) -> None:
    engine = FakeEngine(ensemble())
    content = document(binary=False, parameters=parameters)
    response = Server(engine).ask("POST", INFER, json=content, headers=headers)
    assert "did not get its turn before the deadline" in error(response, 504)


@pytest.mark.parametrize(
    ("headers", "parameters"), [({"Request-Timeout-Ms": "1.7e308"}, {}), ({}, {"timeout": 2**63 - 1})]
)
def test_no_timeout_is_too_long(headers: dict[str, str], parameters: dict[str, int]) -> None:
    server = Server(ReadingEngine(ensemble()), deadline_ms=LONGEST_MS)
    server.infer(json=document(binary=False, parameters=parameters), headers=headers)


def test_a_timeout_of_zero_means_no_timeout(server: Server) -> None:
    server.infer(json=document(binary=False, parameters={"timeout": 0}))


@pytest.mark.parametrize("compressed", ["gzip", "deflate"])
def test_compressed_bodies(server: Server, compressed: str) -> None:
    request = binary()
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[compressed]
    headers = request["headers"] | {"Content-Encoding": compressed}
    body = pack(request["content"])
    server.infer(content=body, headers=headers)
    assert "cut off" in error(server.ask("POST", INFER, content=body[:-9], headers=headers), 400)
    assert f"not {compressed}" in error(server.ask("POST", INFER, content=b"x" * 9, headers=headers), 400)
    small = Server(ReadingEngine(ensemble()), max_body_bytes=500)
    bomb = small.ask("POST", INFER, content=pack(bytes(10_000)), headers=headers)
    assert "decompressed body has more than the 500 bytes allowed" in error(bomb, 413)
    headers["Content-Encoding"] = "br"
    assert "send gzip, deflate or none" in error(
        server.ask("POST", INFER, content=b"x", headers=headers), 415
    )


def test_the_server_s_limits_hold() -> None:
    server = Server(ReadingEngine(ensemble()), max_images=2, max_body_bytes=900, max_requests=1)
    assert "3 images, more than the 2 allowed" in error(server.ask("POST", INFER, **binary()), 413)
    assert "900 bytes allowed" in error(server.ask("POST", INFER, content=bytes(901)), 413)
    with server.core.admitted(Record()):
        response = server.ask("POST", INFER, **binary(IMAGES[:1]))
    assert "the most allowed" in error(response, 503)
    assert response.headers["Retry-After"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/models/cow", 404, "model 'cow' is not served; choose from pair"),
        ("GET", "/v2/models/m0", 404, "model 'm0' is not served"),
        ("POST", "/v2/models/cow/infer", 404, "model 'cow' is not served"),
        ("GET", "/v2/models/pair/versions/2/config", 404, "model 'pair' has no version '2'; it has '1'"),
        ("GET", "/v2/models/pair/versions/02/ready", 404, "has no version '02'"),
        ("GET", "/v2/nowhere", 404, "GET /v2/nowhere: Not Found"),
        ("DELETE", "/v2/models/pair", 405, "Method Not Allowed"),
        ("GET", INFER, 405, "Method Not Allowed"),
        ("POST", INFER, 400, "not JSON"),
    ],
)
def test_errors_are_the_protocol_s(server: Server, method: str, path: str, status: int, message: str) -> None:
    assert message in error(server.ask(method, path), status)


def test_a_wrong_deadline_is_a_bad_request(server: Server) -> None:
    request = binary()
    request["headers"]["Request-Timeout-Ms"] = "-1"
    assert "Request-Timeout-Ms: '-1' is not a positive number" in error(
        server.ask("POST", INFER, **request), 400
    )


def test_a_bug_is_an_error_that_tells_nothing_of_the_inside() -> None:
    server = Server(FakeEngine(ensemble()))
    assert error(server.ask("POST", INFER, **binary()), 500) == "internal error; see the server's log"


def test_extreme_logits_stay_valid_json() -> None:
    largest = float(np.finfo(np.float32).max)
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [largest, -largest]), run(0, 1, [largest, 0])]])
    reply = Server(engine).infer(json=document(IMAGES[:1], binary=False)).json()
    assert reply["outputs"][0]["data"] == [largest, -largest / 2]


fuzzed = Server(ReadingEngine(ensemble()))


@settings(max_examples=60, deadline=None)
@given(
    body=spoilt_requests() | st.binary(max_size=99),
    length=st.none() | st.integers(-1, 300).map(str) | st.text("0123456789abc -", max_size=5),
    encoding=st.none() | st.sampled_from(["gzip", "deflate", "identity", "x"]),
    timeout=st.none() | st.text("0123456789.-naif", max_size=4) | st.floats().map(str),
)
def test_no_request_is_the_server_s_fault(
    body: bytes, length: str | None, encoding: str | None, timeout: str | None
) -> None:
    headers = {LENGTH: length, "Content-Encoding": encoding, "Request-Timeout-Ms": timeout}
    response = fuzzed.ask(
        "POST", INFER, content=body, headers={key: value for key, value in headers.items() if value}
    )
    assert response.status_code in (200, 504) or error(response, response.status_code)
    assert response.status_code in (200, 400, 413, 415, 504)


def test_only_the_priority_that_all_requests_have_is_taken(server: Server) -> None:
    server.infer(json=document(binary=False, parameters={"priority": 0}))
    refused = server.ask("POST", INFER, json=document(binary=False, parameters={"priority": 2}))
    assert "priority is 2; requests have no priorities here" in error(refused, 400)


@pytest.mark.parametrize("name", sorted(set(ClassifyQuery.model_fields) - {"model", "version", "early_stop"}))
def test_a_parameter_of_v1_is_refused_rather_than_dropped(server: Server, name: str) -> None:
    wanted = document(binary=False)
    words = f"{name}: only /v1/classify has these parameters; leave them out"
    assert words in error(server.ask("POST", INFER, json=wanted | {"parameters": {name: 1}}), 400)
    assert words in error(server.ask("POST", f"{INFER}?{name}=1", json=wanted), 400)
    assert server.ask("POST", f"{INFER}?other=1", json=wanted).status_code == 200


def test_early_stop_in_the_url_is_refused_rather_than_dropped(server: Server) -> None:
    refused = server.ask("POST", f"{INFER}?early_stop=always", json=document(binary=False))
    assert "early_stop: give it in the request's `parameters`, not in the URL" in error(refused, 400)


def test_the_magnitude_s_limit_is_a_setting() -> None:
    engine = ReadingEngine(ensemble())
    images = np.full((1, 3, 4, 4), 60_000, np.float32)
    refused = Server(engine).ask("POST", INFER, **binary(images))
    assert "finite values of at most 10000 in magnitude" in error(refused, 400)
    Server(engine, max_magnitude=60_000).infer(**binary(images))
    unlimited = Server(engine, max_magnitude=0)
    unlimited.infer(**binary(images))
    for value in (np.nan, np.inf, -np.inf):
        assert "finite" in error(unlimited.ask("POST", INFER, **binary(images * np.float32(value))), 400)
    beyond = document(images, binary=False)
    beyond["inputs"][0]["data"][0] = 1e39
    assert "finite" in error(unlimited.ask("POST", INFER, json=beyond), 400)


@pytest.mark.parametrize("version", ["1", "01", "0001"])
def test_versions_may_have_leading_zeros(server: Server, version: str) -> None:
    answer = server.infer(f"/v2/models/pair/versions/{version}/infer", json=document(binary=False)).json()
    assert answer["model_version"] == "1"
    assert server.ask("GET", f"/v1/models/pair?version={version}").status_code == 200


@pytest.mark.parametrize("version", ["0", "00", "10", "-1", "+1", "1 ", "\N{SUPERSCRIPT ONE}"])
def test_other_versions_are_unknown(server: Server, version: str) -> None:
    assert "has no version" in error(server.ask("GET", f"/v2/models/pair/versions/{version}"), 404)
