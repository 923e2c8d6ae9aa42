"""Members that fail, hang or are late: degraded answers, deadlines, and clients that disconnect."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import BLACK, RED, classify, problem, until_ready
from tests.server.onnx_repository import FAILS, HANGS, NOT_FINITE, SHAPE, write_repository

ACCURACY = {"ensemble": {"top1": 0.9}, "members": [{"top1": 0.8}, {"top1": 0.7}]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "nan", faults={1: NOT_FINITE}, provenance={"accuracy": ACCURACY})
    write_repository(folder, "fails", members=3, faults={1: FAILS})
    write_repository(folder, "shape", faults={1: SHAPE})
    return write_repository(folder, "hangs", faults={0: HANGS}, provenance={"accuracy": ACCURACY})


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    """A server that needs every member."""
    return serve(repository)


@pytest.fixture(scope="module")
def lenient(serve: Serve, repository: Path) -> Server:
    """A server that needs only one member and has a short deadline."""
    return serve(repository, "--min-members", "1", "--deadline-ms", "1000")


def test_all_members_are_needed_by_default(server: Server) -> None:
    response = classify(server, RED, model="nan")
    assert "nan_member1: logits are not finite" in problem(response, 503, "no-quorum")
    assert response.headers["Retry-After"]
    assert "fails_member1" in problem(classify(server, RED, model="fails"), 503, "no-quorum")
    detail = problem(classify(server, RED, model="shape"), 503, "no-quorum")
    assert "shape_member1: gave logits [1, 8], expected [1, 4]" in detail


@pytest.mark.parametrize(("name", "bad"), [("nan", 1), ("fails", 1), ("shape", 1), ("hangs", 0)])
def test_a_degraded_reply_says_so(lenient: Server, name: str, bad: int) -> None:
    until_ready(lenient)
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
    until_ready(server)
    assert classify(server, BLACK, model="hangs").status_code == 200


@pytest.mark.parametrize(("name", "top1"), [("nan", 0.8), ("hangs", 0.7), ("fails", None)])
def test_a_degraded_reply_tells_the_accuracy_of_the_members_used(
    lenient: Server, name: str, top1: float | None
) -> None:
    until_ready(lenient)
    assert classify(lenient, RED, model=name).json()["measured_top1"] == top1


@pytest.mark.parametrize(("server_ms", "asked_ms"), [(600_000, 300), (300, 600_000)])
def test_the_shorter_deadline_of_server_and_request_counts(
    serve: Serve, repository: Path, server_ms: int, asked_ms: int
) -> None:
    server = serve(repository, "--deadline-ms", str(server_ms))
    with server.http() as http:
        response = http.post(
            "/v1/classify?model=hangs",
            files={"files": ("red.png", RED)},
            headers={"Request-Timeout-Ms": str(asked_ms)},
        )
    assert "hangs_member0: no answer before the deadline" in problem(response, 504, "deadline")


def test_a_client_that_leaves_frees_its_members(serve: Serve, repository: Path) -> None:
    """Otherwise the member would hang until the deadline of ten minutes, and block all other requests."""
    server = serve(repository, "--deadline-ms", "600000")
    with httpx.Client(base_url=server.url, timeout=1, trust_env=False) as impatient:
        files = {"files": ("red.png", RED)}
        with pytest.raises(httpx.ReadTimeout):
            impatient.post("/v1/classify?model=hangs", files=files)
    until_ready(server)
    assert classify(server, BLACK, model="hangs").status_code == 200
