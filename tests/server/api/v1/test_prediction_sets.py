"""Prediction sets in `/v1/classify`: what requests may ask for, and what replies say."""

import base64
from dataclasses import replace
from typing import Any

import httpx
import pytest

from coserve_server.ensembles.calibration import Calibration
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.outcomes import MemberRun
from tests.server.api.v1.test_classify import ask
from tests.server.fake_engine import FakeEngine, ensemble, png, run

SETS = {
    "lac": {"thresholds": {"0.9": {"1": 0.3, "2": 0.55}, "0.95": {"2": 0.95}}},
    "raps": {"penalty": 0, "free_classes": 1, "thresholds": {"0.9": {"2": 0.1}}},
}
FILE = {"files": ("a.png", png())}


def calibrated(sets: dict[str, Any] = SETS) -> Ensemble:
    """Three classes: equal logits of two of them have the probabilities 0.5, 0.5 and 0."""
    calibration = Calibration.model_validate({"prediction_sets": sets})
    return replace(ensemble(), labels=("cat", "dog", "cat"), calibration=calibration)


def classify(*runs: MemberRun, **arguments: Any) -> httpx.Response:
    engine = FakeEngine(calibrated(), scripts=[runs or (run(0, 1, [0, 99, 99]), run(0, 1, [0, 99, 99]))])
    return ask(engine, "POST", "/v1/classify", **({"files": FILE} | arguments))


def class_ids(predictions: list[dict[str, Any]]) -> list[int]:
    return [one["class_id"] for one in predictions]


def test_the_set_has_all_of_its_classes_however_few_predictions_are_asked_for() -> None:
    reply = classify(params={"coverage": 0.9, "top_k": 1}).json()
    assert reply["prediction_sets"] == {"coverage": 0.9, "method": "lac", "threshold": 0.55}
    (result,) = reply["results"]
    assert result["predictions"] == result["prediction_set"][:1]
    assert result["prediction_set"] == [
        {"label": "dog", "class_id": 1, "probability": 0.5, "logit": 99},
        {"label": "cat", "class_id": 2, "probability": 0.5, "logit": 99},
    ]


def test_each_image_has_its_own_set() -> None:
    sure = [0, 9, 99]
    equal = [0, 99, 99]
    reply = classify(
        run(0, 1, sure, equal),
        run(0, 1, sure, equal),
        files=[("files", FILE["files"])] * 2,
        params={"coverage": 0.9},
    ).json()
    assert [class_ids(one["prediction_set"]) for one in reply["results"]] == [[2], [1, 2]]
    assert [class_ids(one["predictions"]) for one in reply["results"]] == [[2, 1, 0], [1, 2, 0]]


def test_raps_is_a_choice_and_keeps_the_first_class() -> None:
    reply = classify(params={"coverage": "0.90", "set_method": "raps"}).json()
    assert reply["prediction_sets"] == {"coverage": 0.9, "method": "raps", "threshold": 0.1}
    assert class_ids(reply["results"][0]["prediction_set"]) == [1]


def test_there_are_no_sets_unless_requested() -> None:
    reply = classify().json()
    assert reply["prediction_sets"] is None
    assert reply["results"][0]["prediction_set"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"files": FILE},
        {"files": None, "json": {"images": [base64.b64encode(png()).decode()]}},
        {"files": None, "content": png(), "headers": {"Content-Type": "image/png"}},
    ],
    ids=["multipart", "json", "image"],
)
def test_every_form_of_a_body_may_ask_for_sets(body: dict[str, Any]) -> None:
    reply = classify(params={"coverage": 0.9}, **body).json()
    assert class_ids(reply["results"][0]["prediction_set"]) == [1, 2]


@pytest.mark.parametrize(("coverage", "threshold", "classes"), [(0.9, 0.3, []), (0.95, None, None)])
def test_a_degraded_answer_uses_the_threshold_of_its_members(
    monkeypatch: pytest.MonkeyPatch, coverage: float, threshold: float | None, classes: list[int] | None
) -> None:
    """Two equal classes of 0.5 are below 1 - 0.3; no threshold was fitted for one member at 0.95."""
    monkeypatch.setenv("COSERVE_MIN_MEMBERS", "1")
    reply = classify(run(0, 1, [0, 99, 99]), run(0, 1, error="lost"), params={"coverage": coverage}).json()
    assert reply["degraded"]
    assert reply["prediction_sets"] == {"coverage": coverage, "method": "lac", "threshold": threshold}
    assert reply["results"][0]["prediction_set"] == classes


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"coverage": 0.8}, "coverage is 0.8; pair is calibrated for 0.9, 0.95"),
        ({"coverage": 95}, "coverage is 95.0; pair is calibrated for 0.9, 0.95"),
        ({"coverage": "nan"}, "coverage is nan; pair is calibrated for 0.9, 0.95"),
        ({"coverage": 0.95, "set_method": "raps"}, "coverage is 0.95; pair is calibrated for 0.9"),
        ({"coverage": "95%"}, "coverage: Input should be a valid number"),
        ({"coverage": ""}, "coverage: Input should be a valid number"),
        ({"coverage": 0.9, "set_method": "aps"}, "set_method: Input should be 'lac' or 'raps'"),
        ({"set_method": "raps"}, "set_method needs coverage, such as coverage=0.95"),
    ],
)
def test_what_cannot_be_had_is_refused(query: dict[str, Any], detail: str) -> None:
    response = classify(params=query)
    assert response.status_code == 422
    assert response.json()["type"] == "/problems/invalid-parameters"
    assert detail in response.json()["detail"]


def test_an_ensemble_without_thresholds_says_how_to_get_them() -> None:
    response = ask(FakeEngine(ensemble()), "POST", "/v1/classify", files=FILE, params={"coverage": 0.9})
    assert response.status_code == 422
    assert response.json()["detail"] == (
        "pair has no thresholds for prediction sets; to calibrate it, run coserve evaluate --calibrate on "
        "its training run and export the run again"
    )


def test_the_parameters_are_in_the_openapi_document() -> None:
    document = ask(FakeEngine(ensemble()), "GET", "/openapi.json").json()
    parameters = {one["name"]: one for one in document["paths"]["/v1/classify"]["post"]["parameters"]}
    coverage = parameters["coverage"]["schema"]
    assert (coverage["type"], coverage["exclusiveMinimum"], coverage["exclusiveMaximum"]) == ("number", 0, 1)
    assert parameters["set_method"]["schema"]["enum"] == ["lac", "raps"]
    assert document["components"]["schemas"]["Result"]["properties"]["prediction_set"]["anyOf"][0] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/Prediction"},
    }
