"""NVIDIA's perf_analyzer against `coserve serve`, unchanged."""

import csv
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Serve, Server
from tests.integration.perf_analyzer import counts, perf_analyzer
from tests.server.onnx_repository import write_repository

Analyze = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return serve(write_repository(tmp_path_factory.mktemp("models")), "--serve-members", "--grpc-port", "0")


@pytest.fixture
def analyze(server: Server) -> Analyze:
    binary = perf_analyzer()

    def run(*options: object) -> "subprocess.CompletedProcess[str]":
        address = server.grpc if "grpc" in options else server.url.removeprefix("http://")
        command = [binary, "-u", address, *map(str, options)]
        environment = os.environ | {"LD_LIBRARY_PATH": str(binary.with_name("lib"))}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    return run


@pytest.mark.parametrize(
    "options",
    [
        ["-m", "pair"],
        ["-m", "pair", "-x", 1, "-b", 8],
        ["-m", "pair", "--async"],
        ["-m", "pair", "--input-tensor-format", "json", "--output-tensor-format", "json"],
        ["-m", "pair_member0"],
        ["-m", "pair", "-i", "grpc"],
        ["-m", "pair", "-i", "grpc", "--async", "-b", 8],
        ["-m", "pair", "-i", "grpc", "--async", "--streaming"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_it_measures_and_gets_the_server_s_own_times(
    analyze: Analyze, tmp_path: Path, options: list[object]
) -> None:
    result = tmp_path / "result.csv"
    load = ["--input-data", "zero", "--concurrency-range", 2, "--request-count", 20, "-f", result]
    done = analyze(*options, *load)
    assert done.returncode == 0, done.stdout + done.stderr
    requests, successes = counts(done.stdout)
    assert requests == 20
    assert 0 < successes <= 20
    with result.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["Inferences/Second"]) > 0
    for part in ("Server Queue", "Server Compute Input", "Server Compute Infer", "Server Compute Output"):
        assert float(row[part]) >= 0
    assert float(row["Server Compute Infer"]) > 0


def test_windows_of_time(analyze: Analyze) -> None:
    load = ["--concurrency-range", "1:2", "--measurement-interval", 300, "-s", 900, "-r", 3]
    done = analyze("-m", "pair", "--input-data", "zero", *load)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Successful request count: ") == 2


def test_values_that_are_not_finite_are_named(analyze: Analyze) -> None:
    """perf_analyzer's own random values include NaN."""
    done = analyze("-m", "pair", "--request-count", 5)
    assert done.returncode != 0
    assert "input 'images' must have finite values" in done.stdout + done.stderr
