"""Prediction sets of a real server, from the thresholds in a repository's provenance to the command line."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coserve_client import AsyncClient, Client, InvalidParametersError, PredictionSets
from tests.integration.conftest import COSERVE, Serve, Server
from tests.integration.gateway import LIME, RED, classify, member_logits, problem, until_ready
from tests.server.onnx_repository import LABELS, NOT_FINITE, write_repository

TEMPERATURES = {1: 2.0, 2: 1.5}
SETS = {
    "lac": {"images": 5000, "thresholds": {"0.9": {"1": 0.3, "2": 0.7}, "0.95": {"1": 0.8, "2": 0.8}}},
    "raps": {"images": 4000, "penalty": 0.1, "free_classes": 2, "thresholds": {"0.95": {"2": 0.8}}},
}
COLOURS = {RED: (1, 0, 0), LIME: (0, 1, 0)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    temperatures = {str(members): value for members, value in TEMPERATURES.items()}
    provenance = {"calibration": {"temperatures": temperatures, "prediction_sets": SETS}}
    write_repository(folder, "pair", provenance=provenance)
    write_repository(folder, "nan", faults={1: NOT_FINITE}, provenance=provenance)
    damaged = {"calibration": {"prediction_sets": {"lac": {"thresholds": {"0.9": {"2": "much"}}}}}}
    write_repository(folder, "damaged", provenance=damaged)
    return write_repository(folder, "plain")


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--default-model", "pair", "--min-members", "1", "--serve-members")


def probabilities(repository: Path, image: bytes, *members: int) -> dict[str, float]:
    """Return the calibrated probabilities of some members of `pair`, by label, most probable first."""
    logits = (
        member_logits(repository, "pair", COLOURS[image])[list(members)].mean(0) / TEMPERATURES[len(members)]
    )
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return {LABELS[index]: float(shares[index]) for index in np.argsort(-logits)}


def labels(result: dict[str, Any]) -> list[str]:
    return [one["label"] for one in result["prediction_set"]]


@pytest.mark.parametrize(("coverage", "sizes"), [(0.9, [2, 1]), (0.95, [3, 2])])
def test_sets_of_lac_hold_every_class_that_is_probable_enough(
    server: Server, repository: Path, coverage: float, sizes: list[int]
) -> None:
    reply = classify(server, RED, LIME, coverage=coverage, top_k=1).json()
    threshold = SETS["lac"]["thresholds"][str(coverage)]["2"]
    assert reply["prediction_sets"] == {"coverage": coverage, "method": "lac", "threshold": threshold}
    for result, image, size in zip(reply["results"], (RED, LIME), sizes, strict=True):
        expected = {
            p: label for label, p in probabilities(repository, image, 0, 1).items() if 1 - p <= threshold
        }
        assert labels(result) == list(expected.values())
        assert [one["probability"] for one in result["prediction_set"]] == pytest.approx(
            list(expected), abs=1e-5
        )
        assert (len(result["prediction_set"]), len(result["predictions"])) == (size, 1)


def test_sets_of_raps(server: Server, repository: Path) -> None:
    reply = classify(server, RED, LIME, coverage=0.95, set_method="raps").json()
    assert reply["prediction_sets"] == {"coverage": 0.95, "method": "raps", "threshold": 0.8}
    # Without the penalty for the third class, the green image's set would hold it too.
    assert sum(list(probabilities(repository, LIME, 0, 1).values())[:2]) < 0.8
    assert [len(result["prediction_set"]) for result in reply["results"]] == [3, 2]


@pytest.mark.parametrize(("coverage", "expected"), [(0.9, []), (0.95, ["ship", "cat"])])
def test_a_degraded_reply_and_a_member_alone_have_the_sets_of_one_member(
    server: Server, coverage: float, expected: list[str]
) -> None:
    until_ready(server)
    threshold = SETS["lac"]["thresholds"][str(coverage)]["1"]
    for model, degraded in (("nan", True), ("pair_member0", False)):
        reply = classify(server, RED, model=model, coverage=coverage).json()
        assert reply["degraded"] == degraded
        assert reply["prediction_sets"]["threshold"] == threshold
        assert labels(reply["results"][0]) == expected


def test_a_degraded_reply_whose_members_have_no_threshold_has_no_sets(server: Server) -> None:
    reply = classify(server, RED, model="nan", coverage=0.95, set_method="raps").json()
    assert reply["prediction_sets"] == {"coverage": 0.95, "method": "raps", "threshold": None}
    assert reply["results"][0]["prediction_set"] is None
    assert reply["results"][0]["predictions"]


def test_refusals_name_what_there_is(server: Server) -> None:
    detail = problem(classify(server, RED, coverage=0.99), 422, "invalid-parameters")
    assert detail == "coverage is 0.99; pair is calibrated for 0.9, 0.95"
    detail = problem(classify(server, RED, model="plain", coverage=0.9), 422, "invalid-parameters")
    assert "plain has no thresholds for prediction sets; to calibrate it, run coserve evaluate" in detail
    detail = problem(classify(server, RED, coverage="high"), 422, "invalid-parameters")
    assert "coverage: Input should be a valid number" in detail


def test_the_models_show_their_coverages_and_a_damaged_one_is_one_line(server: Server) -> None:
    with server.http() as http:
        listed = http.get("/v1/models").json()
    shown = {model["name"]: model["provenance"] for model in listed["models"]}
    assert shown["pair"]["calibration"]["prediction_sets"] == SETS
    assert sorted(shown) == ["nan", "pair", "plain"]
    assert listed["not_served"]["damaged"].endswith(
        "parameter provenance.calibration.prediction_sets.lac.thresholds.0.9.2: Input should be a valid "
        "number, unable to parse string as a number"
    )


def test_the_clients_read_the_sets(server: Server) -> None:
    async def ask() -> Any:
        async with AsyncClient(server.url) as client:
            return await client.classify(RED, coverage=0.9)

    with Client(server.url) as client:
        reply = client.classify(RED, coverage=0.9)
        (outcome,) = client.classify_many([RED], coverage=0.95, set_method="raps")
        with pytest.raises(InvalidParametersError, match=r"pair is calibrated for 0\.9, 0\.95"):
            client.classify(RED, coverage=0.8)
        plain = client.classify(RED)
    assert reply.prediction_sets == PredictionSets(0.9, "lac", 0.7)
    assert [one.label for one in reply.results[0].prediction_set or ()] == ["ship", "cat"]
    assert asyncio.run(ask()).results == reply.results
    assert outcome.reply is not None
    assert outcome.reply.prediction_sets == PredictionSets(0.95, "raps", 0.8)
    assert (plain.prediction_sets, plain.results[0].prediction_set) == (None, None)


def test_the_command_prints_the_sets(server: Server, tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    image.write_bytes(RED)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [COSERVE, "classify", image, "--url", server.url, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    line = json.loads(run("--coverage", "0.95", "--set-method", "raps", "--json").stdout)
    assert line["prediction_sets"] == {"coverage": 0.95, "method": "raps", "threshold": 0.8}
    assert labels(line) == ["ship", "cat", "dog"]
    refused = run("--coverage", "0.5")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "coverage is 0.5; pair is calibrated for 0.9, 0.95" in refused.stderr
