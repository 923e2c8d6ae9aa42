"""Models in `/v2`: tensors, configuration, readiness, statistics, single members."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coserve_server.api.app import build_app
from coserve_server.ensembles.accuracy import Accuracy, Measured
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.api.application import IMAGES, LOGITS, Server, ask_app, binary, document, error
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble, png


@pytest.fixture
def server() -> Server:
    return Server(ReadingEngine(ensemble()))


def test_metadata(server: Server) -> None:
    described = server.get("/v2")
    assert described["name"] == "coserve"
    assert {"statistics", "binary_tensor_data", "classification"} <= set(described["extensions"])
    wanted = {
        "name": "pair",
        "versions": ["1"],
        "platform": "coserve_ensemble",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 4, 4]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert server.get("/v2/models/pair") == server.get("/v2/models/pair/versions/1") == wanted


def test_config() -> None:
    server = Server(ReadingEngine(replace(ensemble(max_batch_size=8), provenance={"split": 2})))
    config = server.get("/v2/models/pair/config")
    parameters = {key: json.loads(value["string_value"]) for key, value in config.pop("parameters").items()}
    assert parameters["labels"] == ["cat", "dog"]
    assert parameters["preprocessing"]["height"] == 4
    assert parameters["provenance"] == {"split": 2}
    assert config == {
        "name": "pair",
        "platform": "coserve_ensemble",
        "backend": "",
        "max_batch_size": 8,
        "input": [{"name": "images", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [3, 4, 4]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [2]}],
    }
    few = Server(ReadingEngine(ensemble(max_batch_size=8)), max_images=5)
    assert few.get("/v2/models/pair/versions/1/config")["max_batch_size"] == 5


def test_health(server: Server) -> None:
    assert server.get("/v2/health/live") == {"live": True}
    assert server.get("/v2/health/ready") == {"ready": True}
    assert server.get("/v2/models/pair/ready") == {"ready": True, "name": "pair"}
    server.engine.ready = False
    assert server.get("/v2/health/live") == {"live": True}
    for path, name in (("/v2/health/ready", {}), ("/v2/models/pair/ready", {"name": "pair"})):
        response = server.ask("GET", path)
        assert (response.status_code, response.json()) == (503, {"ready": False} | name)
    assert "m0, m1" in server.ask("POST", "/v2/repository/index").json()[0]["reason"]
    assert server.ask("POST", "/v2/repository/index", json={"ready": True}).json() == []
    wrong = server.ask("POST", "/v2/repository/index", json={"ready": "yes"})
    assert "ready: Input should be a valid boolean" in error(wrong, 400)


def test_the_repository_can_be_read(server: Server) -> None:
    wanted = [{"name": "pair", "version": "1", "state": "READY", "reason": ""}]
    for arguments in ({}, {"content": b"{}"}, {"json": {"ready": True}}):
        assert server.ask("POST", "/v2/repository/index", **arguments).json() == wanted
    assert "body: " in error(server.ask("POST", "/v2/repository/index", content=b"[]"), 400)
    for verb in ("load", "unload"):
        response = server.ask("POST", f"/v2/repository/models/pair/{verb}")
        assert "not enabled" in error(response, 501)


def test_the_index_says_what_could_not_be_loaded(server: Server) -> None:
    server.engine.load_errors = {"pair": "version 2 is cut off", "cow": "no labels"}
    assert server.ask("POST", "/v2/repository/index").json() == [
        {"name": "pair", "version": "1", "state": "READY", "reason": "version 2 is cut off"},
        {"name": "cow", "version": "", "state": "UNAVAILABLE", "reason": "no labels"},
    ]


def test_over_triton_models_are_loaded_there() -> None:
    settings = load_settings(engine="triton", triton_url="127.0.0.1:8001", repository_control=True)
    app = build_app(Classifier(FakeEngine(ensemble()), settings, cores=1))
    for verb in ("load", "unload"):
        response = ask_app(app, "POST", f"/v2/repository/models/pair/{verb}")
        assert "load and unload models in Triton itself" in error(response, 501)


def statistics(server: Server, name: str = "pair") -> dict[str, Any]:
    (one,) = server.get(f"/v2/models/{name}/stats")["model_stats"]
    return dict(one)


def test_statistics_count_what_was_done(server: Server) -> None:
    idle = statistics(server)
    assert (idle["name"], idle["version"], idle["last_inference"]) == ("pair", "1", 0)
    assert (idle["inference_count"], idle["execution_count"], idle["batch_stats"]) == (0, 0, [])
    assert all(total == {"count": 0, "ns": 0} for total in idle["inference_stats"].values())

    server.infer(**binary())
    server.infer(**binary(IMAGES[:1]))
    server.ask("POST", "/v1/classify", files={"files": ("a.png", png())})
    server.ask("POST", "/v1/classify", files={"files": ("a.png", b"no image")})
    counted = statistics(server)
    assert (counted["inference_count"], counted["execution_count"]) == (5, 4)
    assert counted["last_inference"] > 1.7e12
    totals = counted["inference_stats"]
    assert {name: total["count"] for name, total in totals.items()} == {
        "success": 3, "fail": 1, "queue": 3,
        "compute_input": 3, "compute_infer": 3, "compute_output": 3,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    parts = [totals[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert all(ns > 0 for ns in (*parts, totals["fail"]["ns"]))
    assert sum(parts) <= totals["success"]["ns"]
    assert [(one["batch_size"], one["compute_infer"]["count"]) for one in counted["batch_stats"]] == [
        (1, 3),
        (2, 1),
    ]
    spread = sum(one["compute_infer"]["ns"] for one in counted["batch_stats"])
    assert spread == totals["compute_infer"]["ns"], "no request shared a batch here"
    assert server.get("/v2/models/stats")["model_stats"] == [counted]


def test_members_are_served_on_demand() -> None:
    measured = Accuracy(ensemble=Measured(top1=0.9), members=(Measured(top1=0.7), Measured(top1=0.8)))
    server = Server(ReadingEngine(ensemble(accuracy=measured)), serve_members=True)
    assert [one["name"] for one in server.ask("POST", "/v2/repository/index").json()] == ["pair", "m0", "m1"]
    assert server.get("/v2/models/m1")["platform"] == "onnxruntime_onnx"
    assert server.get("/v2/models/m1/config")["max_batch_size"] == 2
    assert server.get("/v2/models/m1/ready")["ready"]
    reply = server.infer("/v2/models/m1/infer", json=document(binary=False)).json()
    assert reply["model_name"] == reply["parameters"]["members"] == "m1"
    np.testing.assert_array_equal(reply["outputs"][0]["data"], (LOGITS + np.float32(0.5)).ravel())
    files = {"files": ("a.png", png())}
    classified = server.ask("POST", "/v1/classify?model=m1", files=files).json()
    assert (classified["model"], classified["measured_top1"]) == ("m1", 0.8)


def test_a_member_s_statistics_include_its_ensemble_s() -> None:
    server = Server(ReadingEngine(ensemble(members=3), broken=["m2"]), serve_members=True, min_members=2)
    server.infer(**binary())
    server.infer("/v2/models/m1/infer", **binary(IMAGES[:1]))
    server.ask("POST", "/v2/models/m2/infer", **binary(IMAGES[:1]))
    counts = {}
    for name in ("pair", "m0", "m1", "m2"):
        one = statistics(server, name)
        totals = one["inference_stats"]
        counts[name] = [one["inference_count"], one["execution_count"], totals["success"]["count"]]
        counts[name].append(totals["fail"]["count"])
        parts = sum(totals[part]["ns"] for part in ("queue", "compute_infer"))
        assert parts <= totals["success"]["ns"]
    assert counts == {"pair": [3, 2, 1, 0], "m0": [3, 2, 2, 0], "m1": [4, 3, 3, 0], "m2": [0, 0, 0, 3]}


def test_the_openapi_description_knows_no_answer_that_is_never_given(server: Server) -> None:
    paths = server.get("/openapi.json")["paths"]
    described = [operation for path in paths if path.startswith("/v2") for operation in paths[path].values()]
    assert len(described) == 17
    for operation in described:
        assert set(operation["responses"]) <= {"200", "503", "default"}
        parameters = {(one["name"], one["in"]) for one in operation.get("parameters", [])}
        assert ("version", "query") not in parameters


def test_files_can_be_announced() -> None:
    server = Server(ReadingEngine(ensemble()), announce_files=True)
    assert server.get("/v2/models/pair")["inputs"] == [
        {"name": "images", "datatype": "BYTES", "shape": [-1, 1]}
    ]
    assert server.get("/v2/models/pair/config")["input"] == [
        {"name": "images", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}
    ]
    server.infer(**binary())
