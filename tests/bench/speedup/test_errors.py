"""Errors of `coserve bench speedup`, and what it leaves out."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coserve_bench import output
from coserve_bench.engine import OPENVINO, LoadedNetworks
from coserve_bench.speedup import compare, measure
from coserve_bench.speedup.loading import load
from coserve_bench.speedup.ways import Plan
from coserve_cli.main import app
from coserve_server.errors import EngineError
from tests.server.onnx_repository import write_repository

UNRECORDED = {"export": {"precision": "fp32"}}


def bench(*arguments: str | Path) -> Result:
    quick = ("--splits", "2", "--repeats", "1", "--seconds", "0")
    return CliRunner().invoke(app, ["bench", "speedup", *quick, *map(str, arguments)])


def assert_one_line(result: Result, error: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert error in result.stderr
    assert result.stderr.count("\n") == 1


def test_ensembles_of_unrecorded_networks_are_not_compared(repository: Path, tmp_path: Path) -> None:
    cats = write_repository(tmp_path / "unrecorded", "cats", members=1, provenance=UNRECORDED)
    write_repository(cats, "dogs", provenance=UNRECORDED)
    unrecorded = "does not record which network its ensembles (cats, dogs) were divided from"
    assert_one_line(bench("--repository", cats), unrecorded)
    write_repository(repository, "pair_int8", provenance={"export": {"precision": "int8"}})
    result = bench("--repository", repository, "--precisions", "fp32,int8", "--json")
    missing = f"int8, S=1, S=2: {repository} has no such ensemble of tiny; pair_int8 records no network"
    assert json.loads(result.stdout)["missing"] == [missing]


def test_a_damaged_network_is_named(repository: Path) -> None:
    file = repository / "pair_member1" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-100])
    assert_one_line(bench("--repository", repository), f"error: {file}: is not an ONNX file")


def test_batches_larger_than_memory_are_refused() -> None:
    batches = ("--batch-sizes", "1000000000")
    assert_one_line(
        bench("--network", "wide_resnet10_1", "--splits", "1", *batches), "error: Unable to allocate"
    )


def test_an_engine_that_cannot_load_a_network_is_left_out(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(plan: Plan) -> LoadedNetworks:
        if plan.engine == OPENVINO and plan.division.split == 2:
            raise EngineError("ensemble pair: no conversion rule")
        return load(plan)

    monkeypatch.setattr(measure, "load", fails)
    result = bench("--repository", repository, "--engines", "onnxruntime,openvino", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {row["engine"] for row in report["rows"]} == {"onnxruntime"}
    assert report["missing"] == ["fp32, openvino: ensemble pair: no conversion rule"]
    assert report["complete"] is True
    alone = bench("--repository", repository, "--engines", "openvino")
    assert_one_line(alone, "error: ensemble pair: no conversion rule\n")


def test_a_data_set_is_only_for_random_weights(repository: Path) -> None:
    result = bench("--repository", repository, "--dataset", "cifar10")
    assert result.exit_code == 2
    assert "--dataset is for random weights" in result.stderr


@pytest.mark.parametrize("option", ["--output", "--plots"])
def test_an_unwritable_file_is_found_before_measuring(
    option: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "compare", lambda *_: pytest.fail("it measured"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x.json", tmp_path / "file" / "deep" / "x.json"):
        assert_one_line(bench("--repository", repository, option, place), "Not a directory")


def test_without_plots_no_folder_is_made(repository: Path, tmp_path: Path) -> None:
    result = bench("--repository", repository, "--network", "huge", "--plots", tmp_path / "new" / "plots")
    assert_one_line(result, "has no ensemble of huge")
    assert not (tmp_path / "new").exists()


def test_results_are_printed_even_if_they_cannot_be_written(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, _text: str) -> None:
        raise output.OutputError(f"cannot write {file}: no space left")

    monkeypatch.setattr(output, "write_whole", full)
    result = bench("--repository", repository, "--output", tmp_path / "out.json")
    assert result.exit_code == 1
    assert "concurrent" in result.stdout
    assert result.stderr == f"error: cannot write {tmp_path / 'out.json'}: no space left\n"
