"""The API over an engine that fails; tests/integration has the rest, over real connections."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from coserve_server.api.app import build_app
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.fake_engine import BuggyEngine, FakeEngine, ensemble, png, run


def ask(engine: FakeEngine, method: str, path: str, **arguments: Any) -> httpx.Response:
    app = build_app(Classifier(engine, load_settings(repository="unused"), cores=1))

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **arguments)

    return asyncio.run(go())


def test_a_bug_is_a_problem_without_internal_details(caplog: pytest.LogCaptureFixture) -> None:
    response = ask(BuggyEngine(ensemble()), "POST", "/v1/classify", files={"files": ("a.png", png())})
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal"
    assert "secret" not in response.text
    assert "secret: /etc/passwd" in caplog.text


def test_below_its_quorum_the_server_is_alive_but_not_ready() -> None:
    engine = FakeEngine(ensemble())
    engine.ready = False
    assert ask(engine, "GET", "/healthz").status_code == 200
    response = ask(engine, "GET", "/readyz")
    assert response.status_code == 503
    assert response.json()["type"] == "/problems/no-quorum"
    assert "pair" in response.json()["detail"]
    assert ask(engine, "GET", "/v1/models/pair").json()["ready"] is False


def test_classes_are_ordered_by_logit_even_if_probabilities_round_to_0() -> None:
    labels = ensemble().labels
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [9e3, 1]), run(0, 1, [9e3, 1])]])
    response = ask(engine, "POST", "/v1/classify", files={"files": ("a.png", png())})
    (result,) = response.json()["results"]
    assert [one["label"] for one in result["predictions"]] == list(labels)


def test_classes_of_the_same_name_stay_two_classes() -> None:
    """Two of ImageNet's classes are "crane", and two are "maillot"."""
    cranes = replace(ensemble(), labels=("crane", "crane"))
    engine = FakeEngine(cranes, scripts=[[run(0, 1, [1, 2]), run(0, 1, [2, 1.5])]] * 2)
    files = {"files": ("a.png", png())}
    query = {"member_predictions": True, "top_k": 5}
    (result,) = ask(engine, "POST", "/v1/classify", files=files, params=query).json()["results"]

    def summary(predictions: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
        return [(one["label"], one["class_id"], one["logit"]) for one in predictions]

    assert summary(result["predictions"]) == [("crane", 1, 1.75), ("crane", 0, 1.5)]
    assert [one["probability"] for one in result["predictions"]] == pytest.approx([0.5622, 0.4378], abs=1e-4)
    assert {name: summary(top) for name, top in result["member_predictions"].items()} == {
        "m0": [("crane", 1, 2), ("crane", 0, 1)],
        "m1": [("crane", 0, 2), ("crane", 1, 1.5)],
    }
    assert ask(engine, "GET", "/v1/models/pair").json()["labels"] == ["crane", "crane"]
    document = {
        "inputs": [{"name": "images", "shape": [1, 3, 4, 4], "datatype": "FP32", "data": [0.0] * 48}],
        "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
    }
    (output,) = ask(engine, "POST", "/v2/models/pair/infer", json=document).json()["outputs"]
    assert output["data"] == ["1.750000:1:crane", "1.500000:0:crane"]


def test_members_times_count_from_the_first_start() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(105, 115, [1, 2]), run(100, 112, [3, 4])]])
    response = ask(engine, "POST", "/v1/classify", files={"files": ("a.png", png())})
    members = response.json()["members"]
    assert [(member["start_ms"], member["end_ms"]) for member in members] == [(5, 15), (0, 12)]


def test_extreme_logits_stay_valid_json() -> None:
    largest = float(np.finfo(np.float32).max)
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [largest, -largest]), run(0, 1, [largest, 0])]])
    response = ask(engine, "POST", "/v1/classify", files={"files": ("a.png", png())})
    (result,) = response.json()["results"]
    assert [p["probability"] for p in result["predictions"]] == [1, 0]


def test_a_problem_is_logged_with_its_instance(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "coserve_server"):
        response = ask(FakeEngine(ensemble()), "GET", "/v1/models/cow")
    assert response.json()["instance"] in caplog.text


def test_a_client_that_disconnects_mid_upload_is_not_a_server_error() -> None:
    app = build_app(Classifier(FakeEngine(ensemble()), load_settings(repository="unused"), cores=1))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }
    incoming = [
        {"type": "http.request", "body": png()[:20], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 499
