import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from coserve_bench import output
from coserve_bench.engine import LoadedNetworks, load_ensemble
from coserve_bench.tune import candidates, choose, measure
from coserve_cli.main import app
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import precisions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import EngineError
from coserve_server.machine.cores import Cores
from coserve_server.settings import load_settings
from tests.server.onnx_repository import HANGS, LABELS, write_repository

STOPPED_IN_A_BATCH = """
import asyncio, signal
from coserve_cli.main import app
from coserve_bench.engine import LoadedNetworks

run = LoadedNetworks.run

async def interrupted(*arguments):
    asyncio.get_running_loop().call_later(0.2, signal.raise_signal, signal.SIGINT)
    return await run(*arguments)

LoadedNetworks.run = interrupted
app()
"""

ODD = 'models "\\ é 😀\x7f'


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Result]:
    repository = tmp_path / ODD
    for name, top1 in (("pair", 0.9), ("small", 0.899), ("bad", 0.5)):
        accuracy = {"accuracy": {"ensemble": {"top1": top1}}}
        write_repository(repository, name, max_batch_size=4, provenance=accuracy)
    fixed = ["tune", "--repository", str(repository), "--rounds", "1"]
    return lambda *arguments: CliRunner().invoke(app, [*fixed, *map(str, arguments)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of each class, each of one colour with noise."""
    random = np.random.default_rng(3)
    for label in LABELS:
        folder = tmp_path / "photos" / "test" / label
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = random.integers(0, 200, (1, 1, 3)) + random.integers(0, 56, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_serve_reads_the_choice(tune: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "tuned.toml"
    models = ("--model", "pair", "--model", "small", "--model", "bad")
    result = tune(*models, "--engine", "onnxruntime", "--output", file)
    assert result.exit_code == 0, result.output
    reference = "than pair in fp32 with onnxruntime"
    assert f"left out: bad in fp32 with onnxruntime, 40.00 points less accurate {reference}" in result.output
    assert result.output.count("<- chosen") == 1
    settings = load_settings(file)
    assert (settings.engine, settings.repository) == ("onnxruntime", tmp_path / ODD)
    assert settings.default_model in ("pair", "small")
    assert settings.member_threads is not None
    assert list(tmp_path.glob(".*")) == []
    again = tune(*models, "--output", file)
    assert again.exit_code == 1
    assert f"{file} exists; --overwrite replaces it" in again.output


def test_a_path_that_toml_cannot_hold(tune: Callable[..., Result], tmp_path: Path) -> None:
    result = tune(
        "--model", "pair", "--repository", tmp_path / "caf\udce9", "--output", tmp_path / "tuned.toml"
    )
    assert result.exit_code == 1
    assert "tuned.toml cannot name the repository, whose path is not UTF-8" in result.output


def test_json(tune: Callable[..., Result]) -> None:
    result = tune("--model", "pair", "--model", "pair", "--engine", "openvino", "--goal", "latency", "--json")
    content = json.loads(result.stdout)
    assert content["goal"] == "latency"
    assert content["complete"] is True
    assert content["choice"]["engine"] == "openvino"
    assert content["choice"]["openvino_precision"] == "fp32"
    assert "max_batch_size" not in content["choice"], "latency of one image says nothing about batches"
    assert {row["batch_size"] for row in content["measured"]} == {1, 4}
    rows = [tuple(row[key] for key in ("threads", "pinned", "batch_size")) for row in content["measured"]]
    assert len(rows) == len(set(rows)), "a model that is named twice is measured once"
    assert {(row["precision"], row["top1"]) for row in content["measured"]} == {("fp32", 0.9)}
    reason = "the accuracy of pair in bf16 with openvino is not known; give --evaluation-data"
    unmeasured = {"pair in bf16 with openvino": reason} if "bf16" in precisions("openvino") else {}
    assert content["left_out"] == unmeasured


def test_accuracy_is_measured_on_evaluation_data(tune: Callable[..., Result], photos: Path) -> None:
    models = ("--model", "pair", "--model", "bad")
    data = ("--evaluation-data", photos)
    result = tune(*models, *data, "--engine", "openvino", "--max-accuracy-loss", 100, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    found = {(row["model"], row["precision"]): row["top1"] for row in content["measured"]}
    computed = precisions("openvino")
    assert set(found) == {(model, precision) for model in ("pair", "bad") for precision in computed}
    # Both have the same networks; the recorded accuracies no longer count.
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


def test_an_ensemble_that_an_engine_cannot_load_is_left_out(
    tune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(ensemble: Ensemble, options: EngineOptions, cores: Cores) -> LoadedNetworks:
        if options.engine == "openvino":
            raise EngineError("no conversion rule")
        return load_ensemble(ensemble, options, cores)

    monkeypatch.setattr(candidates, "load_ensemble", fails)
    result = tune("--model", "pair", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert {row["engine"] for row in content["measured"]} == {"onnxruntime"}
    computed = [f"pair in {precision} with openvino" for precision in precisions("openvino")]
    assert content["left_out"] == dict.fromkeys(computed, "no conversion rule")
    alone = tune("--model", "pair", "--model", "small", "--engine", "openvino")
    assert (alone.exit_code, alone.output) == (1, "error: no conversion rule\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_prints_the_measurements_without_a_choice(
    number: signal.Signals, tune: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    # SIGTERM is ignored unless the command handles it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    original = measure._time
    calls = itertools.count(1)

    async def times(*arguments: Any) -> list[float]:
        if next(calls) in (3, 4, 7):
            signal.raise_signal(number)
        return await original(*arguments)

    monkeypatch.setattr(measure, "_time", times)
    file = tmp_path / "tuned.toml"
    try:
        result = tune("--model", "pair", "--engine", "onnxruntime", "--output", file, "--json")
        early = tune("--model", "pair", "--engine", "onnxruntime")
        table = tune("--model", "pair", "--engine", "onnxruntime")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert [one.exit_code for one in (result, early, table)] == [130, 130, 130]
    content = json.loads(result.stdout)
    assert (content["complete"], content["choice"]) == (False, None)
    assert [row["batch_size"] for row in content["measured"]] == [1, 4]
    assert not file.exists()
    assert early.output == "", "nothing was measured"
    assert table.output.endswith("\ninterrupted: nothing is chosen\n")
    assert "<- chosen" not in table.output


def test_interrupted_members_are_not_reported_as_failed(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={0: HANGS})
    command = ("tune", "--repository", str(tmp_path), "--model", "pair", "--engine", "onnxruntime")
    result = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_A_BATCH, *command], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_an_unwritable_file_is_found_before_measuring(
    tune: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "measure", lambda *_, **__: pytest.fail("it measured"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x.toml", tmp_path / f"{'x' * 300}.toml", tmp_path):
        result = tune("--model", "pair", "--output", place)
        assert result.exit_code == 1
        assert result.output.startswith(f"error: cannot write {place}: ")
        assert len(result.output.splitlines()) == 1


def test_the_choice_is_printed_even_if_it_cannot_be_written(
    tune: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, _text: str) -> None:
        raise output.OutputError(f"cannot write {file}: no space left")

    monkeypatch.setattr(output, "write_whole", full)
    result = tune("--model", "pair", "--engine", "onnxruntime", "--output", tmp_path / "tuned.toml")
    assert result.exit_code == 1
    assert 'default_model = "pair"\n' in result.stdout
    assert result.stderr == f"error: cannot write {tmp_path / 'tuned.toml'}: no space left\n"


@pytest.mark.parametrize("points", ["nan", "inf", "-0.1"])
def test_a_meaningless_accuracy_loss_is_a_usage_error(points: str, tune: Callable[..., Result]) -> None:
    result = tune("--model", "pair", "--max-accuracy-loss", points)
    assert result.exit_code == 2
    assert "give points, 0 or more" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "none is not in"),
        (
            ["--model", "pair", "--engine", "tensorrt"],
            "unknown engine 'tensorrt': choose from onnxruntime, openvino",
        ),
    ],
)
def test_errors_are_one_line(tune: Callable[..., Result], arguments: list[str], message: str) -> None:
    result = tune(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.splitlines()) == 1
