import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_server.engines.embedded.choice import precisions
from coserve_server.settings import load_settings
from tests.server.onnx_repository import LABELS, write_repository


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Result]:
    repository = tmp_path / "models"
    for name, top1 in (("pair", 0.9), ("small", 0.899), ("bad", 0.5)):
        accuracy = {"accuracy": {"ensemble": {"top1": top1}}}
        write_repository(repository, name, max_batch_size=4, provenance=accuracy)
    fixed = ["tune", "--repository", str(repository), "--rounds", "1"]
    return lambda *arguments: CliRunner().invoke(app, [*fixed, *map(str, arguments)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of each class, in a colour each and some noise."""
    random = np.random.default_rng(3)
    for label in LABELS:
        folder = tmp_path / "photos" / "test" / label
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = random.integers(0, 200, (1, 1, 3)) + random.integers(0, 56, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_the_choice_is_what_serve_reads(tune: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    models = ("--model", "pair", "--model", "small", "--model", "bad")
    result = tune(*models, "--engine", "onnxruntime", "--output", file)
    assert result.exit_code == 0, result.output
    reference = "than pair in fp32 with onnxruntime"
    assert f"left out: bad in fp32 with onnxruntime, 40.00 points less accurate {reference}" in result.output
    assert result.output.count("<- chosen") == 1
    settings = load_settings(file)
    assert (settings.engine, settings.repository) == ("onnxruntime", tmp_path / "models")
    assert settings.default_model in ("pair", "small")
    assert settings.member_threads is not None
    assert list(tmp_path.glob(".*")) == []
    again = tune(*models, "--output", file)
    assert again.exit_code == 1
    assert f"{file} exists; --overwrite replaces it" in again.output


def test_json(tune: Callable[..., Result]) -> None:
    result = tune("--model", "pair", "--engine", "openvino", "--goal", "latency", "--json")
    content = json.loads(result.stdout)
    assert content["goal"] == "latency"
    assert content["choice"]["engine"] == "openvino"
    assert content["choice"]["openvino_precision"] == "fp32"
    assert "max_batch_size" not in content["choice"], "what answers one image soonest says nothing of batches"
    assert {row["batch_size"] for row in content["measured"]} == {1, 4}
    assert {(row["precision"], row["top1"]) for row in content["measured"]} == {("fp32", 0.9)}
    reason = "nobody measured the accuracy of pair in bf16 with openvino; give --evaluation-data"
    unmeasured = {"pair in bf16 with openvino": reason} if "bf16" in precisions("openvino") else {}
    assert content["left_out"] == unmeasured


def test_accuracy_is_measured_on_evaluation_data(tune: Callable[..., Result], photos: Path) -> None:
    models, data = ("--model", "pair", "--model", "bad"), ("--evaluation-data", photos)
    result = tune(*models, *data, "--engine", "openvino", "--max-accuracy-loss", 100, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    found = {(row["model"], row["precision"]): row["top1"] for row in content["measured"]}
    computed = precisions("openvino")
    assert set(found) == {(model, precision) for model in ("pair", "bad") for precision in computed}
    # Both have the same networks: what their provenance says no longer counts.
    assert found["pair", "fp32"] == found["bad", "fp32"]
    right = 40 * found["pair", "fp32"]
    assert right == pytest.approx(round(right))
    assert content["left_out"] == {}
    assert content["choice"]["openvino_precision"] in computed


def test_evaluation_data_of_other_classes_is_one_line(tune: Callable[..., Result], photos: Path) -> None:
    (photos / "test" / "ship").rename(photos / "test" / "jet")
    result = tune("--model", "pair", "--evaluation-data", photos)
    assert result.exit_code == 1
    assert "classes differ from the ensemble's: missing ['ship'], unknown ['jet']" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "none is not in"),
        (["--model", "pair", "--engine", "tensorrt"], "engine: 'tensorrt' is none of onnxruntime, openvino"),
    ],
)
def test_errors_are_one_line(tune: Callable[..., Result], arguments: list[str], message: str) -> None:
    result = tune(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.splitlines()) == 1
