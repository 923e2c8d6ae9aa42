"""`coserve serve --engine triton` over a real Triton: the same answers as the embedded engine's."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.integration.conftest import Serve, Server, StartTriton, Triton
from tests.integration.gateway import BLACK, LIME, RED, classify, logits, problem
from tests.server.onnx_repository import FAILS, NOT_FINITE, SHAPE, limit_instances, write_repository

ACCURACY = {"ensemble": {"top1": 0.9}, "members": [{"top1": 0.8}, {"top1": 0.7}]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "pair", weights=[1.0, 3.0], provenance={"accuracy": ACCURACY})
    write_repository(folder, "fails", members=3, faults={1: FAILS})
    write_repository(folder, "nan", faults={1: NOT_FINITE}, provenance={"accuracy": ACCURACY})
    write_repository(folder, "shape", faults={0: SHAPE})
    return limit_instances(folder)


@pytest.fixture(scope="module")
def server(triton: StartTriton, repository: Path) -> Triton:
    return triton(repository)


@pytest.fixture(scope="module")
def gateway(serve: Serve, server: Triton) -> Server:
    """A gateway that needs only one member."""
    return serve(None, "--triton-url", server.grpc, "--min-members", "1")


@pytest.fixture(scope="module")
def embedded(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--min-members", "1")


def test_both_engines_give_the_same_logits(gateway: Server, embedded: Server) -> None:
    images = [RED, LIME, BLACK] * 5
    ours, theirs = (classify(one, *images, model="pair").json() for one in (gateway, embedded))
    for index in range(len(images)):
        np.testing.assert_allclose(logits(ours, index), logits(theirs, index), atol=1e-4)
    assert np.abs(logits(ours, 0) - logits(ours, 1)).max() > 1e-2
    assert not ours["degraded"]
    assert ours["measured_top1"] == theirs["measured_top1"] == 0.9


def test_both_engines_describe_the_same_models(gateway: Server, embedded: Server) -> None:
    listed = []
    for one in (gateway, embedded):
        with one.http() as http:
            listed.append(http.get("/v1/models").json())
    assert listed[0] == listed[1]


def test_members_run_at_once(gateway: Server, server: Triton) -> None:
    reply = classify(gateway, RED, model="pair").json()
    first, second = reply["members"]
    assert first["device"] == second["device"] == f"triton {server.grpc}"
    assert second["start_ms"] < first["end_ms"]
    assert reply["overlap"] > 1


def test_requests_at_once_get_their_own_answers(gateway: Server) -> None:
    def ask(index: int) -> np.ndarray:
        return logits(classify(gateway, [RED, LIME][index % 2], model="pair").json(), 0)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    for index, answer in enumerate(answers):
        np.testing.assert_allclose(answer, answers[index % 2], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "bad", "error"),
    [
        ("nan", 1, r"logits are not finite"),
        ("shape", 0, r"gave logits \[1, 8\], expected \[1, 4\]"),
        ("fails", 1, r"127\.0\.0\.1:\d+: .*Gather"),
    ],
)
def test_a_member_that_answers_wrongly_is_left_out_and_named(
    gateway: Server, name: str, bad: int, error: str
) -> None:
    reply = classify(gateway, RED, model=name, member_predictions=True).json()
    assert reply["degraded"]
    (missing,) = (member for member in reply["members"] if not member["used"])
    assert missing["name"] == f"{name}_member{bad}"
    assert re.search(error, missing["error"])
    members = reply["results"][0]["member_predictions"]
    assert set(members) == {m["name"] for m in reply["members"]} - {missing["name"]}
    scores = [{p["class_id"]: p["logit"] for p in predictions} for predictions in members.values()]
    mean = [np.mean([score[index] for score in scores]) for index in range(4)]
    np.testing.assert_allclose(logits(reply, 0), mean, atol=1e-4)


def test_below_the_quorum_the_failures_are_named(serve: Serve, server: Triton) -> None:
    strict = serve(None, "--triton-url", server.grpc)
    assert "nan_member1: logits are not finite" in problem(
        classify(strict, RED, model="nan"), 503, "no-quorum"
    )


def test_images_may_go_through_shared_memory(serve: Serve, server: Triton, gateway: Server) -> None:
    shared = serve(None, "--triton-url", server.grpc, triton_shared_memory_mib=4)
    before = set(Path("/dev/shm").glob("coserve-*"))
    assert before
    images = [RED, LIME, BLACK]
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: classify(shared, *images, model="pair").json(), range(12)))
    expected = classify(gateway, *images, model="pair").json()
    for reply in replies:
        for index in range(len(images)):
            np.testing.assert_allclose(logits(reply, index), logits(expected, index), atol=1e-5)
    shared.stop()
    assert set(Path("/dev/shm").glob("coserve-*")) < before, "it is given back"


def test_one_connection_serves_all_requests(gateway: Server, server: Triton) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: classify(gateway, RED, model="pair"), range(16)))
    port = int(server.grpc.rpartition(":")[2])
    connections = psutil.Process(gateway.process.pid).net_connections()
    assert len([one for one in connections if one.raddr and one.raddr.port == port]) == 1
