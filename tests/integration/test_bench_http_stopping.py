"""Ending `coserve bench http` early by a signal or a lost process keeps what was measured."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import COSERVE, Serve, Server
from tests.integration.gateway import BLACK
from tests.server.onnx_repository import write_repository

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_repository(folder / "models")
    (folder / "black.png").write_bytes(BLACK)
    return folder


@pytest.fixture
def server(serve: Serve, folder: Path) -> Server:
    return serve(folder / "models")


@pytest.fixture
def start(server: Server, folder: Path) -> Iterator[Start]:
    """Start measuring in a process group of its own, and wait until some requests have been answered."""
    processes = []

    def run(*options: object) -> "subprocess.Popen[str]":
        command = [COSERVE, "bench", "http", "--url", server.url, "--image", "black.png", "--json"]
        process = subprocess.Popen(
            [*command, "--concurrency", "2", *map(str, options)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        while count_answered(server) < 20 and process.poll() is None:
            time.sleep(0.05)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def count_answered(server: Server) -> float:
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("coserve_images_total{"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command(start: Start, number: signal.Signals) -> None:
    process = start("--seconds", 60, "--warm-up", 0)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    report = json.loads(output)
    assert report["complete"] is False
    assert report["loads"][0]["answered"] >= 10
    assert report["loads"][0]["errors"] == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_its_processes(start: Start, number: signal.Signals) -> None:
    """The signal goes to the process group, as terminals and `timeout` send it."""
    process = start("--seconds", 60, "--warm-up", 0)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert json.loads(output)["loads"][0]["answered"] >= 10


def test_a_signal_before_anything_counts(start: Start) -> None:
    process = start("--seconds", 1, "--warm-up", 60)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert json.loads(output)["loads"][0]["answered"] == 0


def test_a_server_that_goes_away(start: Start, server: Server, folder: Path) -> None:
    process = start("--seconds", 0.2, "--warm-up", 0, "--rounds", 1000, "--output", "out.json")
    server.process.kill()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: the server stopped answering in round ")
    assert errors.count("\n") == 1
    report = json.loads(output)
    assert json.loads((folder / "out.json").read_text()) == report
    assert report["complete"] is False
    assert report["loads"][0]["answered"] >= 10
    assert report["loads"][0]["errors"]["cannot connect"] > 0


def test_a_load_generator_that_is_killed(start: Start) -> None:
    process = start("--seconds", 0.1, "--warm-up", 0, "--rounds", 1000)
    (generator,) = (
        child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
    )
    generator.kill()
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, "error: the load generator ended with status -9\n")
    assert json.loads(output)["complete"] is False


def test_a_file_that_can_no_longer_be_written(start: Start, folder: Path) -> None:
    (folder / "results").mkdir()
    process = start("--seconds", 60, "--warm-up", 0, "--output", "results/out.json")
    shutil.rmtree(folder / "results")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    reason = "cannot write results/out.json: No such file or directory"
    assert (process.returncode, errors) == (1, f"error: {reason}\n")
    assert json.loads(output)["loads"][0]["answered"] >= 10
