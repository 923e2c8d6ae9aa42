"""Early stopping over `/v1` and `/v2`: what requests may ask for, what replies and metrics say."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from coserve_server.api.app import build_app
from coserve_server.ensembles.accuracy import Accuracy
from coserve_server.ensembles.calibration import Calibration
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble, png

SURE, UNSURE = "red", "black"
"""Images whose logits differ by 1 and by 0 at every member of a `ReadingEngine`."""
CALIBRATION = {
    "early_stopping": [{"loss": 0.0, "confidence": 0.6, "top1": 0.93}],
    "prediction_sets": {"lac": {"thresholds": {"0.9": {"1": 0.9, "2": 0.1}}}},
}
FILES = [("files", (f"{colour}.png", png(colour))) for colour in (SURE, UNSURE)]


def calibrated(members: int = 2) -> Ensemble:
    accuracy = Accuracy.model_validate({"ensemble": {"top1": 0.94}})
    return replace(ensemble(members, accuracy=accuracy), calibration=Calibration.model_validate(CALIBRATION))


def ask(
    *requests: tuple[str, str, dict[str, Any]], engine: FakeEngine | None = None, **settings: Any
) -> list[httpx.Response]:
    """Send requests to one server, in turn."""
    core = Classifier(
        engine or ReadingEngine(calibrated()), load_settings(repository="unused", **settings), cores=1
    )
    app = build_app(core)

    async def go() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.request(method, path, **more) for method, path, more in requests]

    return asyncio.run(go())


def classify(engine: FakeEngine | None = None, files: Any = FILES, **params: Any) -> dict[str, Any]:
    wanted = ("POST", "/v1/classify", {"files": files, "params": {"early_stop": "always"} | params})
    (response,) = ask(wanted, engine=engine)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def infer(**parameters: Any) -> dict[str, Any]:
    data = [1.0] + [0.0] * 47 + [0.0] * 48
    return {
        "json": {
            "inputs": [{"name": "images", "shape": [2, 3, 4, 4], "datatype": "FP32", "data": data}],
            "parameters": parameters,
        }
    }


def test_a_reply_says_for_each_image_which_members_were_used() -> None:
    reply = classify()
    (first, second) = (result["members"] for result in reply["results"])
    assert len(first) == 1
    assert second == ["m0", "m1"]
    assert reply["early_stopping"] == {"confidence": 0.6, "loss": 0.0}
    assert reply["measured_top1"] == 0.93
    assert reply["degraded"] is False
    assert reply["results"][0]["uncertainty"]["disagreement"] == 0


def test_a_member_that_was_not_needed_is_not_missing() -> None:
    reply = classify(files=FILES[:1])
    used, idle = reply["members"]
    assert (used["used"], used["error"]) == (True, None)
    assert idle == {
        "name": "m1", "used": False, "device": None, "start_ms": None, "end_ms": None, "error": None
    }  # fmt: skip
    assert reply["degraded"] is False


def test_off_and_not_staged_replies_name_all_members() -> None:
    reply = classify(early_stop="off")
    assert reply["early_stopping"] is None
    assert reply["measured_top1"] == 0.94
    assert [result["members"] for result in reply["results"]] == [["m0", "m1"]] * 2


def test_an_image_that_needed_all_members_has_the_same_answer_as_without_stopping() -> None:
    stopped = classify(member_predictions=True, top_k=2)["results"][1]
    whole = classify(member_predictions=True, top_k=2, early_stop="off")["results"][1]
    assert stopped == whole


def test_member_predictions_are_those_of_the_members_that_answered() -> None:
    reply = classify(member_predictions=True)
    for result in reply["results"]:
        assert list(result["member_predictions"]) == result["members"]
    first = reply["results"][0]
    assert list(first["member_predictions"].values()) == [first["predictions"]]


def test_prediction_sets_have_the_threshold_for_each_images_number_of_members() -> None:
    reply = classify(coverage=0.9, top_k=1)
    assert reply["prediction_sets"] == {"coverage": 0.9, "method": "lac", "threshold": None}
    assert [len(result["prediction_set"]) for result in reply["results"]] == [2, 0]
    alone = classify(files=FILES[:1], coverage=0.9)
    assert alone["prediction_sets"]["threshold"] == 0.9


def test_a_failed_member_is_replaced_and_only_missed_where_it_was_needed() -> None:
    engine = ReadingEngine(calibrated(), broken=["m0"])
    reply = classify(engine, FILES[:1])
    assert [result["members"] for result in reply["results"]] == [["m1"]]
    assert (reply["degraded"], reply["measured_top1"]) == (False, 0.93)
    assert [member["error"] for member in reply["members"]] == ["broke", None]
    wanted = ("POST", "/v1/classify", {"files": FILES, "params": {"early_stop": "always"}})
    (response,) = ask(wanted, engine=engine)
    assert response.status_code == 503
    assert "1 of 2 members answered, 2 needed (m0: broke)" in response.json()["detail"]
    three = ReadingEngine(calibrated(3), broken=["m0"])
    (response,) = ask(wanted, engine=three, min_members=1)
    reply = response.json()
    assert reply["results"][1]["members"] == ["m1", "m2"]
    assert (reply["degraded"], reply["measured_top1"]) == (True, None)


@pytest.mark.parametrize("path", ["/v1/classify", "/v2/models/pair/infer"])
def test_a_wrong_choice_or_a_missing_calibration_is_one_clear_problem(path: str) -> None:
    def request(choice: str) -> tuple[str, str, dict[str, Any]]:
        v1 = {"files": FILES, "params": {"early_stop": choice}}
        return "POST", path, v1 if path.startswith("/v1") else infer(early_stop=choice)

    status = 422 if path.startswith("/v1") else 400
    (wrong,) = ask(request("sometimes"))
    assert wrong.status_code == status
    assert "early_stop" in wrong.text
    assert "'off', 'loaded' or 'always'" in wrong.text
    (uncalibrated,) = ask(request("loaded"), engine=ReadingEngine(ensemble()))
    assert uncalibrated.status_code == status
    assert "pair is not calibrated for stopping early" in uncalibrated.text


def test_v2_says_the_same_in_parameters() -> None:
    staged, whole = ask(
        ("POST", "/v2/models/pair/infer", infer(early_stop="always")),
        ("POST", "/v2/models/pair/infer", infer()),
    )
    parameters = staged.json()["parameters"]
    first, _, second = parameters.pop("image_members").partition(";")
    assert first in ("m0", "m1")
    assert second == "m0,m1"
    assert parameters == {
        "degraded": False,
        "members": "m0,m1",
        "overlap": parameters["overlap"],
        "early_stop_confidence": 0.6,
        "measured_top1": 0.93,
    }
    assert set(whole.json()["parameters"]) == {"degraded", "members", "overlap"}
    needed_all, all_at_once = (one.json()["outputs"][0]["data"][2:] for one in (staged, whole))
    assert needed_all == all_at_once


def test_metrics_and_statistics_count_members_per_image() -> None:
    classified = ("POST", "/v1/classify", {"files": FILES})
    whole = ("POST", "/v1/classify", {"files": FILES, "params": {"early_stop": "off"}})
    responses = ask(
        classified,
        whole,
        ("GET", "/metrics", {}),
        ("GET", "/v2/models/stats", {}),
        early_stop="always",
        serve_members=True,
    )
    lines = responses[2].text.splitlines()
    for line in (
        'coserve_images_total{model="pair"} 4.0',
        'coserve_images_stopped_early_total{model="pair"} 1.0',
        'coserve_image_members_sum{model="pair"} 7.0',
        'coserve_image_members_count{model="pair"} 4.0',
        'coserve_image_members_bucket{le="1.0",model="pair"} 1.0',
        'coserve_degraded_answers_total{model="pair"} 0.0',
        'coserve_member_overlap_ratio_count{model="pair"} 1.0',
    ):
        assert line in lines
    stats = {one["name"]: one for one in responses[3].json()["model_stats"]}
    assert stats["pair"]["inference_count"] == 4
    members = [stats[name] for name in ("m0", "m1")]
    assert sum(one["inference_count"] for one in members) == 7
    assert sum(one["execution_count"] for one in members) == stats["pair"]["execution_count"] + 1


def test_a_server_that_stops_early_serves_single_members_and_uncalibrated_ensembles_as_ever() -> None:
    wanted = ("POST", "/v1/classify", {"files": FILES, "params": {"model": "m1"}})
    (alone,) = ask(wanted, early_stop="always", serve_members=True)
    assert [result["members"] for result in alone.json()["results"]] == [["m1"], ["m1"]]
    (response,) = ask(
        ("POST", "/v1/classify", {"files": FILES}), engine=ReadingEngine(ensemble()), early_stop="always"
    )
    assert response.json()["early_stopping"] is None
