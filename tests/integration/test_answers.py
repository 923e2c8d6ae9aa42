"""Responses of `coserve serve` to valid requests: a real server, real images, real networks."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import LIME, RED, classify, encoded, logits, member_logits
from tests.server.onnx_repository import LABELS, write_repository

ACCURACY = {"images": 5000, "ensemble": {"top1": 0.9}, "members": [{"top1": 0.8}, {"top1": 0.7}]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    provenance = {"network": "tiny", "split": 2, "accuracy": ACCURACY}
    write_repository(folder, "pair", weights=[1.0, 3.0], provenance=provenance)
    write_repository(folder, "five", members=5)
    return write_repository(folder, "single", members=1)


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--default-model", "pair")


def test_the_logits_are_the_weighted_mean_of_the_members(server: Server, repository: Path) -> None:
    reply = classify(server, RED, LIME).json()
    for index, colour in enumerate([(1, 0, 0), (0, 1, 0)]):
        members = member_logits(repository, "pair", colour)
        np.testing.assert_allclose(logits(reply, index), members[0] / 4 + members[1] * 3 / 4, atol=1e-4)


def test_the_reply_is_complete(server: Server) -> None:
    reply = classify(server, RED, top_k=2, member_predictions=True).json()
    assert (reply["model"], reply["version"], reply["degraded"]) == ("pair", "1", False)
    assert reply["measured_top1"] == 0.9
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
    assert [model["name"] for model in listed["models"]] == ["five", "pair", "single"]
    assert listed["default"] == "pair"
    assert described in listed["models"]
    assert described["provenance"] == {"network": "tiny", "split": 2, "accuracy": ACCURACY}
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


@pytest.mark.parametrize("path", ["/v1/classify", "/v2/models/{name}/infer"])
def test_the_openapi_description_s_examples_can_be_sent(server: Server, path: str) -> None:
    with server.http() as http:
        operation = http.get("/openapi.json").json()["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        response = http.post(path.format(name="pair"), json=example)
    assert response.status_code == 200, response.text


def test_the_openapi_description_is_complete(server: Server) -> None:
    with server.http() as http:
        operation = http.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/octet-stream",
        "application/json",
    }
    assert set(operation["responses"]) == {
        "200",
        "400",
        "401",
        "404",
        "408",
        "413",
        "415",
        "422",
        "503",
        "504",
    }
    for status, response in operation["responses"].items():
        wanted = "application/json" if status == "200" else "application/problem+json"
        assert list(response["content"]) == [wanted]
