"""From a training run to calibrated probabilities over HTTP."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from onnx import helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export.trained import export_run
from coserve_training.config import TrainConfig
from coserve_training.runs.calibrate import Calibration, calibrate_run
from coserve_training.runs.prediction_sets import COVERAGES
from coserve_training.training_run import train
from tests.integration.conftest import Serve, Server

MEMBERS = 3
ONE_FAILS = "one_fails"


@pytest.fixture(scope="module")
def data(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared images; two of each class's ten test images have a wrong label, so no network is sure."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "train").symlink_to(image_folder / "train")
    labels = sorted(path.name for path in (image_folder / "test").iterdir())
    for index, label in enumerate(labels):
        (folder / "test" / label).mkdir(parents=True)
        for number in range(10):
            shown = labels[(index + 1) % 3] if number in (3, 8) else label
            source = image_folder / f"test/{shown}/{number:03}.png"
            (folder / f"test/{label}/{number:03}.png").symlink_to(source)
    return folder


@pytest.fixture(scope="module")
def exported(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    """A repository with a calibrated ensemble, and a copy in which one member gives NaN for images."""
    folder = tmp_path_factory.mktemp("calibration")
    config = TrainConfig(data=(str(data),), network="wide_resnet10_1", split=MEMBERS, epochs=2, batch_size=12)
    train(config, folder / "run", report=lambda _: None)
    _, calibration, _ = calibrate_run(folder / "run", [data])
    for name in ("whole", ONE_FAILS):
        export_run(folder / "run", folder / "models", name=name)
    file = folder / f"models/{ONE_FAILS}_member1/1/model.onnx"
    model = onnx.load(file)
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "finite"
    # Zeros, as in the warm-up, are fine; negative values, of pixels darker than the mean, give NaN.
    model.graph.node.extend(
        [
            helper.make_node("Sqrt", ["images"], ["roots"]),
            helper.make_node("GlobalAveragePool", ["roots"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["means"]),
            helper.make_node("Add", ["finite", "means"], ["logits"]),
        ]
    )
    onnx.save(model, file)
    return folder / "models", calibration


@pytest.fixture(scope="module")
def server(serve: Serve, exported: tuple[Path, Calibration]) -> Server:
    return serve(exported[0], "--min-members", "1")


def by_class(predictions: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([p[key] for p in sorted(predictions, key=lambda p: p["class_id"])])


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def classify(server: Server, image: Path, model: str, **query: Any) -> Mapping[str, Any]:
    with server.http() as http:
        response = http.post(
            "/v1/classify",
            content=image.read_bytes(),
            headers={"Content-Type": "image/png"},
            params={"model": model, "member_predictions": True} | query,
        )
    assert response.status_code == 200, response.text
    return response.json()


def test_export_puts_the_calibration_into_the_provenance(exported: tuple[Path, Calibration]) -> None:
    folder, calibration = exported
    config = text_format.Parse((folder / "whole/config.pbtxt").read_text("utf-8"), ModelConfig())
    provenance = json.loads(config.parameters["provenance"].string_value)
    recorded = {int(size): value for size, value in provenance["calibration"]["temperatures"].items()}
    assert recorded == calibration.temperatures
    assert len({1.0, *recorded.values()}) == MEMBERS + 1, (
        "four numbers that differ, or the tests tell nothing"
    )
    assert not calibration.bounded
    assert provenance["calibration"] == json.loads(json.dumps(asdict(calibration)))
    assert [len(subset["members"]) for subset in provenance["accuracy"]["subsets"]] == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize(("model", "used"), [("whole", MEMBERS), (ONE_FAILS, MEMBERS - 1)])
def test_probabilities_are_those_of_the_mean_divided_by_the_temperature(
    server: Server, exported: tuple[Path, Calibration], data: Path, model: str, used: int
) -> None:
    _, calibration = exported
    reply = classify(server, data / "test/red/000.png", model)
    assert sum(member["used"] for member in reply["members"]) == used
    (result,) = reply["results"]
    members = np.array([by_class(own, "logit") for own in result["member_predictions"].values()])
    assert len(members) == used
    mean = members.mean(0)
    np.testing.assert_allclose(by_class(result["predictions"], "logit"), mean, rtol=1e-5, atol=1e-6)
    probabilities = by_class(result["predictions"], "probability")
    np.testing.assert_allclose(probabilities, softmax(mean / calibration.temperatures[used]), rtol=1e-5)
    assert result["uncertainty"]["entropy"] == pytest.approx(
        -(probabilities * np.log(probabilities)).sum(), rel=1e-6
    )
    for own, logits in zip(result["member_predictions"].values(), members, strict=True):
        expected = softmax(logits / calibration.temperatures[1])
        np.testing.assert_allclose(by_class(own, "probability"), expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["lac", "raps"])
@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize(("model", "used"), [("whole", MEMBERS), (ONE_FAILS, MEMBERS - 1)])
def test_served_sets_are_those_that_training_fitted(
    server: Server,
    exported: tuple[Path, Calibration],
    data: Path,
    model: str,
    used: int,
    coverage: float,
    method: str,
) -> None:
    fitted = getattr(exported[1].prediction_sets, method)
    threshold = fitted.thresholds[coverage][used]
    reply = classify(server, data / "test/red/003.png", model, coverage=coverage, set_method=method)
    assert reply["prediction_sets"] == {"coverage": coverage, "method": method, "threshold": threshold}
    (result,) = reply["results"]
    scores = fitted.scores(torch.from_numpy(by_class(result["predictions"], "probability"))[None])[0]
    expected = {index for index, score in enumerate(scores.tolist()) if score <= threshold}
    assert {one["class_id"] for one in result["prediction_set"]} == expected


def test_sets_hold_the_right_class_as_often_as_asked_for(server: Server, data: Path) -> None:
    images = sorted(data.glob("test/*/*.png"))
    files = [("files", (image.name, image.read_bytes())) for image in images]
    with server.http() as http:
        reply = http.post("/v1/classify", files=files, params={"model": "whole", "coverage": 0.9}).json()
    held = [
        image.parent.name in [one["label"] for one in result["prediction_set"]]
        for image, result in zip(images, reply["results"], strict=True)
    ]
    # The threshold was fitted on these images: the score of the 28th, the first number above 0.9 * 31.
    assert len(held) == 30
    assert sum(held) == pytest.approx(28, abs=1)


def test_the_model_shows_its_calibration(server: Server, exported: tuple[Path, Calibration]) -> None:
    with server.http() as http:
        shown = http.get("/v1/models/whole").json()["provenance"]["calibration"]
    assert shown["temperatures"] == {str(k): t for k, t in exported[1].temperatures.items()}
