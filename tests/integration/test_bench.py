"""`coserve bench perf-analyzer`: NVIDIA's own program against a real Triton server."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.integration.conftest import COSERVE, StartTriton, Triton
from tests.integration.perf_analyzer import perf_analyzer
from tests.server.onnx_repository import limit_instances, write_repository

RANGES = ["0:4", "4:1", "4:1:-1", "1:2:0", "1:2:1:1"]
"""Invalid ranges of concurrency."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return limit_instances(write_repository(tmp_path_factory.mktemp("bench") / "repository"))


@pytest.fixture(scope="module")
def server(triton: StartTriton, repository: Path) -> Triton:
    return triton(repository)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    perf_analyzer()
    # What is measured is on this machine.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        command = [COSERVE, "bench", "perf-analyzer", *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)

    return run


def test_members_together_the_ensemble_and_a_server_over_http(
    bench: Callable[..., subprocess.CompletedProcess[str]], server: Triton, tmp_path: Path
) -> None:
    """Triton's own HTTP service stands in for the gateway: both speak the Open Inference Protocol."""
    options = [
        "--triton",
        server.grpc,
        "--gateway",
        server.http,
        "--binary",
        perf_analyzer(),
        "--concurrency",
        "1:3:2",
    ]
    done = bench(*options, "--requests", 20, "--batch-size", 2, "--output", tmp_path / "out.json", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)
    assert json.loads((tmp_path / "out.json").read_text()) == results
    assert (results["ensemble"], results["triton"], results["batch_size"]) == ("pair", "2.51.0", 2)
    assert results["complete"] is True
    assert [(m["concurrency"], m["what"], m["model"]) for m in results["measurements"]] == [
        (concurrency, what, model)
        for concurrency in (1, 3)
        for what, model in [
            ("alone", "pair_member0"),
            ("alone", "pair_member1"),
            ("together", "pair_member0"),
            ("together", "pair_member1"),
            ("ensemble", "pair"),
            ("gateway", "pair"),
        ]
    ]
    for measurement in results["measurements"]:
        latencies = measurement["latencies"]
        models = measurement["models"]
        assert 0 < latencies["p50_ms"] <= latencies["p95_ms"] <= latencies["p99_ms"]
        assert latencies["images_per_s"] > 0
        expected = {"ensemble": ["pair_member0", "pair_member1", "pair_mean"], "gateway": []}
        assert list(models) == expected.get(measurement["what"], [measurement["model"]])
        assert all(times["compute_ms"] > 0 for times in models.values()), "Triton counted requests"
    medians = {
        (m["concurrency"], m["what"], m["model"]): m["latencies"]["p50_ms"] for m in results["measurements"]
    }
    for comparison in results["comparisons"]:
        level = comparison["concurrency"]
        alone = [medians[level, "alone", f"pair_member{i}"] for i in range(2)]
        together = [medians[level, "together", f"pair_member{i}"] for i in range(2)]
        assert comparison == {
            "concurrency": level,
            "slowest_alone_ms": max(alone),
            "in_turn_ms": sum(alone),
            "together_ms": max(together),
            "ensemble_ms": medians[level, "ensemble", "pair"],
        }


def test_it_starts_a_server_for_a_repository(
    bench: Callable[..., subprocess.CompletedProcess[str]], repository: Path
) -> None:
    options = ["--repository", repository, "--model", "pair"]
    options += ["--binary", perf_analyzer(), "--concurrency", "2"]
    done = bench(*options, "--requests", 20)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pair on Triton 2.51.0, ")
    assert [line.split()[1:3] for line in lines[2:7]] == [
        ["pair_member0", "alone"],
        ["pair_member1", "alone"],
        ["pair_member0", "together"],
        ["pair_member1", "together"],
        ["pair", "ensemble"],
    ]
    assert lines[7].startswith("concurrency 2, p50: slowest member alone ")


@pytest.fixture
def empty() -> Iterator[str]:
    """Yield the address of an HTTP server that responds with 404 to everything."""
    with HTTPServer(("127.0.0.1", 0), Nothing) as http:
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


class Nothing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # The program and the file are checked before the server, so that nothing is started in vain.
        (["--triton", "127.0.0.1:1", "--binary", "none"], "none does not exist: run make perf-analyzer"),
        (["--triton", "127.0.0.1:1", "--binary", "."], ". is not executable: run make perf-analyzer"),
        (
            ["--triton", "127.0.0.1:1", "--binary", "{text}"],
            "{text} is not executable: run make perf-analyzer",
        ),
        (
            ["--triton", "127.0.0.1:1", "--output", "none/out.json"],
            "cannot write none/out.json: No such file",
        ),
        (["--triton", "{grpc}", "--model", "pair_mean"], "pair_mean is not an ensemble"),
        (["--triton", "{grpc}", "--model", "cats"], "Triton at {grpc}: "),
        (["--triton", "127.0.0.1:1"], "Triton at 127.0.0.1:1: "),
        (["--repository", "none"], "none is not a folder"),
        (["--triton", "{grpc}", "--gateway", "127.0.0.1:1"], "the gateway at 127.0.0.1:1 does not answer: "),
        (
            ["--triton", "{grpc}", "--gateway", "{empty}"],
            "the gateway at {empty} answers 404 Not Found for pair",
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    bench: Callable[..., subprocess.CompletedProcess[str]],
    server: Triton,
    empty: str,
    options: list[str],
    message: str,
) -> None:
    places = {"grpc": server.grpc, "text": __file__, "empty": empty}
    arguments = [option.format(**places) for option in options]
    binary = [] if "--binary" in options else ["--binary", perf_analyzer()]
    done = bench(*arguments, *binary, "--concurrency", "1", "--requests", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert message.format(**places) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_gives_the_results_so_far(server: Triton, tmp_path: Path, number: signal.Signals) -> None:
    """The signal goes to the whole process group, as a terminal sends it."""
    temporary = tmp_path / "temporary"
    output = tmp_path / "out.json"
    temporary.mkdir()
    command = [COSERVE, "bench", "perf-analyzer", "--triton", server.grpc, "--binary", perf_analyzer()]
    process = subprocess.Popen(
        [*command, "--requests", "20", "--concurrency", "1:1000", "--output", output],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Once the second member's figures exist, the first member's have been read.
    while not list(temporary.glob("*/pair_member1.csv")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert list(temporary.iterdir()) == []
    lines = printed.splitlines()
    assert lines[2].split()[:3] == ["1", "pair_member0", "alone"]
    assert lines[-1] == "stopped early: these are the results so far"
    results = json.loads(output.read_text())
    assert results["complete"] is False
    assert results["measurements"][0]["latencies"]["p50_ms"] > 0


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--triton", "a:1", "--repository", "b"],
        *(["--triton", "a:1", "--concurrency", levels] for levels in RANGES),
    ],
    ids=["neither", "both", *RANGES],
)
def test_options_that_cannot_be(
    bench: Callable[..., subprocess.CompletedProcess[str]], options: list[str]
) -> None:
    assert bench(*options).returncode == 2
