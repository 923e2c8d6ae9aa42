"""Early stopping of a real server: over HTTP, gRPC and the Python client, with members that fail or hang."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from coserve_client import (
    AsyncClient,
    Client,
    EarlyStopping,
    Inference,
    InvalidParametersError,
    RejectedError,
)
from tests.integration.conftest import Serve, Server
from tests.integration.gateway import classify, encoded, logits, member_logits, problem, until_ready
from tests.integration.load import Load, until
from tests.server.onnx_repository import HANGS, LABELS, NOT_FINITE, add_version, write_repository

CONFIDENCE = 0.75
TEMPERATURES = {1: 1.1, 2: 1.0, 3: 0.9, 4: 0.8}
MEMBERS = 4
COLOURS = {
    "red": (1, 0, 0),
    "lime": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
    "white": (1, 1, 1),
    "black": (0, 0, 0),
}
IMAGES = {colour: encoded(colour) for colour in COLOURS}
PROVENANCE = {
    "calibration": {
        "temperatures": {str(members): value for members, value in TEMPERATURES.items()},
        "early_stopping": [{"loss": 0.0, "confidence": CONFIDENCE, "members": 2, "top1": 0.9}],
    },
    "accuracy": {"ensemble": {"top1": 0.91}},
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "nan", members=MEMBERS, faults={0: NOT_FINITE}, provenance=PROVENANCE)
    write_repository(folder, "hangs", members=2, faults={0: HANGS}, provenance=PROVENANCE)
    write_repository(folder, "pair", provenance=PROVENANCE)
    write_repository(folder, "plain")
    return write_repository(folder, "quad", members=MEMBERS, provenance=PROVENANCE)


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--default-model", "quad", "--grpc-port", "0", "--early-stop", "loaded")


@cache
def all_logits(repository: Path, colour: str) -> np.ndarray:
    return member_logits(repository, "quad", COLOURS[colour])


def combine(repository: Path, colour: str, members: list[int]) -> np.ndarray:
    return np.asarray(all_logits(repository, colour)[members].mean(axis=0))


def is_sure(repository: Path, colour: str, members: list[int]) -> bool:
    scaled = combine(repository, colour, members) / TEMPERATURES[len(members)]
    return bool(1 / np.exp(scaled - scaled.max()).sum() > CONFIDENCE)


def indices(result: dict[str, Any]) -> list[int]:
    return [int(name.removeprefix("quad_member")) for name in result["members"]]


def check(reply: dict[str, Any], repository: Path, colours: list[str]) -> Counter[int]:
    """Check every image's answer, and return how many images had how many members."""
    staged = reply["early_stopping"] is not None
    assert reply["degraded"] is False
    assert reply["measured_top1"] == (0.9 if staged else 0.91)
    for index, (result, colour) in enumerate(zip(reply["results"], colours, strict=True)):
        members = indices(result)
        np.testing.assert_allclose(logits(reply, index), combine(repository, colour, members), atol=1e-4)
        assert (staged and is_sure(repository, colour, members)) or len(members) == MEMBERS
    return Counter(len(result["members"]) for result in reply["results"])


def test_concurrent_requests_of_all_kinds_have_the_answers_of_the_members_they_name(
    server: Server, repository: Path
) -> None:
    colours = list(COLOURS)
    choices = ["always", "off", "loaded", "always"]

    def ask(number: int) -> tuple[str, Counter[int]]:
        own = [colours[(number + step) % len(colours)] for step in range(1 + number % 11)]
        choice = choices[number % len(choices)]
        response = classify(server, *(IMAGES[colour] for colour in own), early_stop=choice, top_k=len(LABELS))
        return choice, check(response.json(), repository, own)

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(ask, range(44)))
    whole = sum((sizes for choice, sizes in outcomes if choice == "off"), Counter())
    assert set(whole) == {MEMBERS}
    staged = sum((sizes for choice, sizes in outcomes if choice == "always"), Counter())
    assert staged[1], "some image's first member is sure"
    assert staged[MEMBERS] >= 4, "no member is sure of a black image"


def test_images_that_need_all_members_have_the_answer_of_off(server: Server) -> None:
    black = IMAGES["black"]
    stopped, whole = (
        classify(server, black, early_stop=choice, member_predictions=True).json()["results"][0]
        for choice in ("always", "off")
    )
    assert stopped["members"] == whole["members"]
    for one, other in zip(stopped["predictions"], whole["predictions"], strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert stopped["uncertainty"] == pytest.approx(whole["uncertainty"], abs=1e-6)


def test_a_failing_member_is_replaced(server: Server) -> None:
    for _ in range(4):
        reply = classify(server, IMAGES["magenta"], model="nan", early_stop="always").json()
        assert reply["degraded"] is False
        assert "nan_member0" not in reply["results"][0]["members"]
    response = classify(server, IMAGES["magenta"], model="nan", early_stop="off")
    assert "3 of 4 members answered, 4 needed" in problem(response, 503, "no-quorum")


def tensors() -> np.ndarray:
    """Return the images of all colours as tensors, `[8, 3, 8, 8]`."""
    return np.stack(
        [np.broadcast_to(np.array(COLOURS[one], np.float32)[:, None, None], (3, 8, 8)) for one in COLOURS]
    )


def test_grpc_and_the_python_client_share_the_rule(server: Server, repository: Path) -> None:
    pixels = tensors()
    tensor = grpc.InferInput("images", list(pixels.shape), "FP32").set_data_from_numpy(pixels)
    with grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer("quad", [tensor], parameters={"early_stop": "always"})
    parameters = result.get_response().parameters
    assert parameters["early_stop_confidence"].double_param == CONFIDENCE
    assert parameters["measured_top1"].double_param == 0.9
    answered = parameters["image_members"].string_param.split(";")
    for names, colour, row in zip(answered, COLOURS, result.as_numpy("logits"), strict=True):
        members = [int(name[-1]) for name in names.split(",")]
        np.testing.assert_allclose(row, combine(repository, colour, members), atol=1e-4)

    with Client(server.url) as client:
        reply = client.classify(list(IMAGES.values()), early_stop="always")
        assert reply.early_stopping == EarlyStopping(CONFIDENCE, 0.0)
        assert (reply.missing, reply.degraded) == ((), False)
        assert all(result.members for result in reply.results)
        assert client.classify(IMAGES["red"], early_stop="off").early_stopping is None
        with pytest.raises(InvalidParametersError, match="plain is not calibrated for stopping early"):
            client.classify(IMAGES["red"], model="plain", early_stop="always")
        assert client.classify(IMAGES["red"], model="plain").early_stopping is None


def test_both_clients_infer_with_early_stopping(server: Server, repository: Path) -> None:
    async def ask_asynchronously() -> Inference:
        async with AsyncClient(server.url) as client:
            return await client.infer("quad", tensors(), early_stop="always")

    with Client(server.url) as client:
        stopped = client.infer("quad", tensors(), early_stop="always")
        whole = client.infer("quad", tensors(), early_stop="off")
        with pytest.raises(RejectedError, match="plain is not calibrated for stopping early"):
            client.infer("plain", tensors(), early_stop="always")
    for inference in (stopped, asyncio.run(ask_asynchronously())):
        assert (inference.early_stop_confidence, inference.measured_top1) == (CONFIDENCE, 0.9)
        assert inference.image_members
        assert min(map(len, inference.image_members)) == 1
        for names, colour, row in zip(inference.image_members, COLOURS, inference.logits, strict=True):
            members = [int(name[-1]) for name in names]
            np.testing.assert_allclose(row, combine(repository, colour, members), atol=1e-4)
    assert (whole.image_members, whole.early_stop_confidence, whole.measured_top1) == (None, None, None)
    assert len(whole.members) == MEMBERS


def test_a_member_that_hangs_is_replaced_and_then_skipped(serve: Serve, repository: Path) -> None:
    server = serve(
        repository,
        "--early-stop",
        "always",
        "--min-members",
        "1",
        "--default-model",
        "hangs",
        deadline_ms=3000,
    )
    answers = [classify(server, IMAGES["blue"]).json() for _ in range(4)]
    assert {tuple(reply["results"][0]["members"]) for reply in answers} == {("hangs_member1",)}
    until_ready(server)


def test_a_reload_under_load_loses_nothing_and_metrics_add_up(serve: Serve, repository: Path) -> None:
    server = serve(repository, "--early-stop", "always", repository_poll_ms=50)
    with Load(server) as load:
        add_version(repository, "pair", 2)
        until(lambda: load.answers[-1]["version"] == "2" or bool(load.failures))
        load.wait_for_more()
    assert load.failures == []
    assert {reply["version"] for reply in load.answers} == {"1", "2"}
    sizes = [len(result["members"]) for reply in load.answers for result in reply["results"]]
    with server.http() as http:
        lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines['coserve_image_members_sum{model="pair"}']) == sum(sizes)
    assert float(lines['coserve_images_total{model="pair"}']) == len(sizes)
    assert server.stop() == 0
