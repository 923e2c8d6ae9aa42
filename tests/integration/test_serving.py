"""`coserve serve` as a user meets it: a real server, real images, real networks."""

import base64
import io
import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from tests.integration.conftest import COSERVE, Serve, Server
from tests.server.onnx_repository import FAILS, HANGS, LABELS, NAN, write_repository


def encoded(colour: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind)
    return file.getvalue()


RED, LIME, BLACK = encoded("red"), encoded("lime"), encoded("black")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "pair", weights=[1.0, 3.0], provenance={"network": "tiny", "split": 2})
    write_repository(folder, "five", members=5)
    write_repository(folder, "single", members=1)
    write_repository(folder, "nan", faults={1: NAN})
    write_repository(folder, "fails", members=3, faults={1: FAILS})
    write_repository(folder, "hangs", faults={0: HANGS})
    return folder


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(
        repository, "--default-model", "pair", max_body_bytes=200_000, max_images=20, max_pixels=10_000
    )


@pytest.fixture(scope="module")
def lenient(serve: Serve, repository: Path) -> Server:
    """One member is enough, and none may take long."""
    return serve(repository, "--min-members", "1", "--deadline-ms", "1000")


def classify(server: Server, *images: bytes, **query: Any) -> httpx.Response:
    files = [("files", (f"{index}.png", image)) for index, image in enumerate(images)]
    with server.http() as http:
        return http.post("/v1/classify", files=files, params=query)


def logits(reply: dict[str, Any], index: int) -> np.ndarray:
    predictions = reply["results"][index]["predictions"]
    return np.array([p["logit"] for p in sorted(predictions, key=lambda p: p["class_id"])])


def member_logits(folder: Path, name: str, colour: tuple[float, float, float]) -> np.ndarray:
    batch = np.broadcast_to(np.array(colour, np.float32)[:, None, None], (1, 3, 8, 8))
    return np.stack(
        [
            ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": batch})[0][0]
            for path in sorted(folder.glob(f"{name}_member*/1/model.onnx"))
        ]
    )


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """Check that it is a whole problem document, and give its detail."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == f"/problems/{kind}"
    assert document["status"] == status
    assert document["title"]
    assert document["instance"].startswith("urn:uuid:")
    assert "Traceback" not in document["detail"]
    return str(document["detail"])


def test_the_logits_are_the_weighted_mean_of_the_members(server: Server, repository: Path) -> None:
    reply = classify(server, RED, LIME).json()
    for index, colour in enumerate([(1, 0, 0), (0, 1, 0)]):
        members = member_logits(repository, "pair", colour)
        np.testing.assert_allclose(logits(reply, index), members[0] / 4 + members[1] * 3 / 4, atol=1e-4)


def test_the_reply_is_complete(server: Server) -> None:
    reply = classify(server, RED, top_k=2, member_predictions=True).json()
    assert (reply["model"], reply["version"], reply["degraded"]) == ("pair", "1", False)
    assert reply["overlap"] > 0
    assert [member["name"] for member in reply["members"]] == ["pair_member0", "pair_member1"]
    for member in reply["members"]:
        assert member["used"]
        assert member["error"] is None
        assert member["device"].startswith("cpu")
        assert 0 <= member["start_ms"] < member["end_ms"]
    assert set(reply["timings_ms"]) == {"decode", "preprocess", "queue", "inference", "combine", "total"}
    (result,) = reply["results"]
    assert result["filename"] == "0.png"
    first, second = result["predictions"]
    assert first["probability"] >= second["probability"]
    assert first["label"] == LABELS[first["class_id"]]
    assert set(result["uncertainty"]) == {"entropy", "disagreement"}
    assert set(result["member_predictions"]) == {"pair_member0", "pair_member1"}
    assert all(len(predictions) == 2 for predictions in result["member_predictions"].values())


def test_the_three_body_forms_agree(server: Server) -> None:
    with server.http() as http:
        replies = [
            classify(server, RED),
            http.post("/v1/classify", content=RED, headers={"Content-Type": "image/png"}),
            http.post("/v1/classify", json={"images": [base64.b64encode(RED).decode()]}),
        ]
    results = [reply.json()["results"][0] for reply in replies]
    assert [result.pop("filename") for result in results] == ["0.png", None, None]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_image_formats(server: Server, kind: str) -> None:
    assert classify(server, encoded("red", kind)).status_code == 200


@pytest.mark.parametrize("name", ["five", "single"])
def test_other_ensembles_of_the_repository(server: Server, repository: Path, name: str) -> None:
    reply = classify(server, RED, model=name).json()
    expected = member_logits(repository, name, (1, 0, 0)).mean(axis=0)
    np.testing.assert_allclose(logits(reply, 0), expected, atol=1e-4)


def test_more_images_than_a_batch_holds(server: Server) -> None:
    reply = classify(server, *[RED, LIME] * 9).json()
    assert [result["filename"] for result in reply["results"]] == [f"{index}.png" for index in range(18)]
    np.testing.assert_allclose(logits(reply, 0), logits(reply, 16), atol=1e-4)
    np.testing.assert_allclose(logits(reply, 1), logits(reply, 17), atol=1e-4)
    assert np.abs(logits(reply, 0) - logits(reply, 1)).max() > 1e-3


def test_requests_at_once_get_their_own_answers(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda index: classify(server, [RED, LIME][index % 2]).json(), range(40)))
    for index, reply in enumerate(replies):
        np.testing.assert_allclose(logits(reply, 0), logits(replies[index % 2], 0), atol=1e-5)


def test_models_are_listed_and_described(server: Server) -> None:
    with server.http() as http:
        listed = http.get("/v1/models").json()
        described = http.get("/v1/models/pair").json()
    assert [model["name"] for model in listed["models"]] == [
        "fails",
        "five",
        "hangs",
        "nan",
        "pair",
        "single",
    ]
    assert listed["default"] == "pair"
    assert described in listed["models"]
    assert described["provenance"] == {"network": "tiny", "split": 2}
    assert described["labels"] == LABELS
    assert described["weights"] == [1, 3]
    assert (described["ready"], described["quorum"]) == (True, 2)


def test_health_and_documentation_need_nothing_from_elsewhere(server: Server) -> None:
    with server.http() as http:
        assert http.get("/healthz").json() == {"status": "alive"}
        assert http.get("/readyz").json() == {"status": "ready"}
        page = http.get("/docs").text
        assert "https://" not in page
        for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert http.get(f"/static-offline-docs/{asset}").status_code == 200


def test_the_openapi_description_is_complete(server: Server) -> None:
    with server.http() as http:
        operation = http.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert set(operation["responses"]) == {"200", "400", "404", "408", "413", "415", "422", "503", "504"}
    for status, response in operation["responses"].items():
        wanted = "application/json" if status == "200" else "application/problem+json"
        assert list(response["content"]) == [wanted]


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
    assert "choose from fails, five" in problem(classify(server, RED, model="cow"), 404, "unknown-model")
    with server.http() as http:
        problem(http.get("/v1/models/cow"), 404, "unknown-model")


def test_several_models_and_no_default(lenient: Server) -> None:
    assert "choose from" in problem(classify(lenient, RED), 422, "invalid-parameters")


def test_a_body_that_says_it_is_too_large(server: Server) -> None:
    detail = problem(classify(server, bytes(300_000)), 413, "body-too-large")
    assert detail == "the body has more than the 200000 bytes allowed"


def test_an_answer_before_the_end_of_the_body_arrives(server: Server) -> None:
    """A client that sends more than the server will read still gets the problem, every time."""
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
    """Chunked, without a length; the server answers before the body's end, so only what it reads is sent."""
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
        "model: Extra inputs are not permitted",
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
    "unknown parameter": (
        {"params": {"topk": 1}},
        422,
        "invalid-parameters",
        "topk: Extra inputs are not permitted",
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


def test_all_members_are_needed_unless_told_otherwise(server: Server) -> None:
    response = classify(server, RED, model="nan")
    assert "nan_member1: logits are not finite" in problem(response, 503, "no-quorum")
    assert response.headers["Retry-After"]
    assert "fails_member1" in problem(classify(server, RED, model="fails"), 503, "no-quorum")


@pytest.mark.parametrize(("name", "bad"), [("nan", 1), ("fails", 1), ("hangs", 0)])
def test_a_degraded_reply_says_so(lenient: Server, name: str, bad: int) -> None:
    reply = classify(lenient, RED, model=name, member_predictions=True).json()
    assert reply["degraded"]
    missing = [member for member in reply["members"] if not member["used"]]
    assert [member["name"] for member in missing] == [f"{name}_member{bad}"]
    assert missing[0]["error"]
    (result,) = reply["results"]
    members = result["member_predictions"]
    assert f"{name}_member{bad}" not in members
    mean = np.mean([p["logit"] for p in (_of(m, 0) for m in members.values())])
    assert _of(result["predictions"], 0)["logit"] == pytest.approx(mean, abs=1e-4)


def _of(predictions: list[dict[str, Any]], class_id: int) -> dict[str, Any]:
    return next(p for p in predictions if p["class_id"] == class_id)


def test_a_member_that_hangs_does_not_hang_the_server(serve: Serve, repository: Path) -> None:
    server = serve(repository, "--deadline-ms", "500")
    detail = problem(classify(server, RED, model="hangs"), 504, "deadline")
    assert "hangs_member0: no answer before the deadline" in detail
    assert classify(server, BLACK, model="hangs").status_code == 200


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
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as slow:
        slow.sendall(
            b"POST /v1/classify?model=pair HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"100" in slow.recv(100), "the server waits for the body"
        response = classify(server, RED, model="pair")
        assert "as many as are allowed" in problem(response, 503, "overloaded")
        assert response.headers["Retry-After"]
        with server.http() as http:
            assert http.get("/healthz").status_code == 200


def test_sigterm_lets_requests_finish(serve: Serve, repository: Path) -> None:
    server = serve(repository)
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(
            b"POST /v1/classify?model=pair HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(RED)
        )
        assert b"100" in connection.recv(100)
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(server.stop)
            connection.sendall(RED)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            stopped.result(60)


def test_the_announcement_can_be_pasted(server: Server, tmp_path: Path) -> None:
    assert any("pair (default): 2 members" in line for line in server.announcement)
    (tmp_path / "photo.jpg").write_bytes(encoded("red", "JPEG"))
    command = server.announcement[-1].removeprefix("  try: ")
    output = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert json.loads(output.stdout)["model"] == "pair"


def refused(*options: str | Path) -> str:
    """The one line with which the command refuses to start."""
    ended = subprocess.run(
        [COSERVE, "serve", *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    return line


def test_a_taken_port_is_one_clear_line(server: Server, repository: Path) -> None:
    port = server.url.rpartition(":")[2]
    line = refused("--repository", repository, "--port", port)
    assert line == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_what_prevents_a_start_is_one_clear_line(repository: Path) -> None:
    line = refused("--port", "0", "--repository", repository, "--default-model", "cow")
    assert line == (
        "error: default model 'cow' is not served; choose from fails, five, hangs, nan, pair, single"
    )
