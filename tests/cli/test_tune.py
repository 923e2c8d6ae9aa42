import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_server.settings import load_settings
from tests.server.onnx_repository import write_repository


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Result]:
    repository = tmp_path / "models"
    for name, top1 in (("pair", 0.9), ("small", 0.899), ("bad", 0.5)):
        accuracy = {"accuracy": {"ensemble": {"top1": top1}}}
        write_repository(repository, name, max_batch_size=4, provenance=accuracy)
    fixed = ["tune", "--repository", str(repository), "--rounds", "1"]
    return lambda *arguments: CliRunner().invoke(app, [*fixed, *map(str, arguments)])


def test_the_choice_is_what_serve_reads(tune: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    models = ("--model", "pair", "--model", "small", "--model", "bad")
    result = tune(*models, "--engine", "onnxruntime", "--output", file)
    assert result.exit_code == 0, result.output
    assert "left out: bad, 40.00 points less accurate than pair" in result.output
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
    assert "max_batch_size" not in content["choice"], "what answers one image soonest says nothing of batches"
    assert {row["batch_size"] for row in content["measured"]} == {1, 4}


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
