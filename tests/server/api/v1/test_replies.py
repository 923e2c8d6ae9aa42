"""Replies of `/v1/classify`: their form, and the limit on their predictions."""

import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from coserve_server.api import json_pieces
from coserve_server.api.v1.schemas import ClassifyReply
from coserve_server.ensembles.calibration import Calibration
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.outcomes import MemberRun
from tests.server.api.application import Server
from tests.server.fake_engine import FakeEngine, ensemble, png

CLASSES = 40
SETS = {"prediction_sets": {"lac": {"thresholds": {"0.9": {"2": 1.0}}}}}
FULL: dict[str, Any] = {"top_k": CLASSES, "member_predictions": True, "coverage": 0.9}


def many_classes() -> Ensemble:
    return replace(
        ensemble(max_batch_size=8),
        labels=tuple(f'class "{index}"' for index in range(CLASSES)),
        calibration=Calibration.model_validate(SETS),
    )


def member_run(logits: np.ndarray) -> MemberRun:
    return MemberRun("", "fake", 0, 1_000_000, logits.astype(np.float32))


def classify(images: int, params: dict[str, Any], **settings: Any) -> httpx.Response:
    random = np.random.default_rng(0)
    runs = [member_run(random.normal(size=(images, CLASSES))) for _ in range(2)]
    server = Server(FakeEngine(many_classes(), scripts=[runs]), **settings)
    files = [("files", (f"{index}.png", png())) for index in range(images)]
    return server.ask("POST", "/v1/classify", params=params, files=files)


def test_replies_are_what_the_schema_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "PIECE_VALUES", 7)
    response = classify(3, FULL)
    reply = ClassifyReply.model_validate_json(response.content, strict=True, extra="forbid")
    # No field is left out that the schema has, and floats are written alike.
    assert json.loads(reply.model_dump_json()) == response.json()
    assert [one.filename for one in reply.results] == ["0.png", "1.png", "2.png"]
    for result in reply.results:
        everything = set(range(CLASSES))
        assert {one.class_id for one in result.predictions} == everything
        assert result.prediction_set == result.predictions
        assert result.member_predictions is not None
        assert list(result.member_predictions) == ["m0", "m1"]
        for predictions in result.member_predictions.values():
            assert {one.class_id for one in predictions} == everything
            assert all(one.label == f'class "{one.class_id}"' for one in predictions)


@pytest.mark.parametrize(
    ("params", "per_image"),
    [
        ({"top_k": 3}, 3),
        ({"top_k": 10**9}, CLASSES),
        ({"top_k": 3, "member_predictions": True}, 9),
        ({"top_k": 3, "coverage": 0.9}, 3 + CLASSES),
        (FULL, 4 * CLASSES),
    ],
)
def test_answers_have_a_limit(params: dict[str, Any], per_image: int) -> None:
    assert classify(2, params, max_predictions=2 * per_image).status_code == 200
    response = classify(2, params, max_predictions=2 * per_image - 1)
    assert response.status_code == 422
    assert response.json()["detail"] == (
        f"the answer would have up to {2 * per_image} predictions, {per_image} for each image; at most "
        f"{2 * per_image - 1} are allowed, so ask for fewer classes, or send fewer images at once"
    )


def test_an_answer_that_is_too_large_for_one_image_is_refused_before_the_body_is_read() -> None:
    server = Server(FakeEngine(many_classes()), max_predictions=CLASSES - 1)
    headers = {"Content-Type": "text/unreadable"}
    arguments: dict[str, Any] = {"content": b"x", "headers": headers}
    assert server.ask("POST", "/v1/classify", **arguments).status_code == 415
    refused = server.ask("POST", "/v1/classify", params={"top_k": CLASSES}, **arguments)
    assert refused.status_code == 422
