"""benchmarks/scaling.py: its model, its page, and the command with tiny settings."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.server.onnx_repository import write_repository

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/scaling.py"
PAGE = ROOT / "docs/guides/serving/scaling.md"
IDEAL = {
    "members": 2,
    "member_ms": 10.0,
    "speedup": 2.0,
    "contention": 1.0,
    "request_ms": 0.0,
    "loop_ms": 0.5,
}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("scaling")


@pytest.mark.parametrize(
    ("changes", "layout", "images_per_s", "limit"),
    [
        ({}, (1, 1, 1), 50, "cores"),
        ({}, (1, 2, 2), 100, "cores"),
        ({}, (8, 8, 1), 3200, "cores"),
        ({"speedup": 1.0}, (1, 8, 1), 100, "cores"),
        ({"request_ms": 5.0}, (1, 1, 1), 40, "cores"),
        ({"request_ms": 5.0}, (1, 3, 1), 100, "members"),
        ({"contention": 1.1}, (1, 2, 2), 100 / 1.1, "cores"),
        ({"contention": 1.1}, (1, 2, 11), 50, "cores"),
        ({"member_ms": 0.1, "loop_ms": 1.0}, (2, 8, 1), 2000, "event loop"),
    ],
)
def test_the_model(
    scaling: Any, changes: dict[str, float], layout: tuple[int, int, int], images_per_s: float, limit: str
) -> None:
    rate, limited_by = scaling.Parameters(**IDEAL | changes).images_per_s(*layout)
    assert rate == pytest.approx(images_per_s)
    assert limited_by == limit


@pytest.mark.parametrize(
    ("speedup", "threads", "faster"), [(2, 8, 8), (1, 8, 1), (1.5, 4, 2), (0.8, 4, 1), (2.2, 4, 4)]
)
def test_threads_follow_amdahls_law(scaling: Any, speedup: float, threads: int, faster: float) -> None:
    parameters = scaling.Parameters(**IDEAL | {"speedup": speedup})
    assert parameters.threads_speedup(threads) == pytest.approx(faster)


def test_the_page_shows_parameters_the_check_and_larger_machines(scaling: Any) -> None:
    stored = {
        "net_s2": {
            "machine": {"processor": "Xeon", "onnxruntime": "1.0"},
            "parameters": IDEAL | {"contention": 1.1},
            "measured": {"1": 48.4, "2": 88.0},
        }
    }
    lines = "\n".join(scaling.section(stored))
    assert "| net_s2 | 10.00 | 2.00 | 1.10 | 0.00 | 0.50 |" in lines
    assert "| net_s2 | 1 | 1 | 1 | 50 | cores | 48 |" in lines
    assert "| net_s2 | 2 | 1 | 1 | 91 | cores | 88 |" in lines
    assert f"| net_s2 | 64 | 8 | 4 | {3200 / 7.3:.0f} to {3200 / 1.1:.0f} | cores |  |" in lines


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_page_has_the_stored_figures() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are measured")
def test_the_command_with_tiny_settings(tmp_path: Path) -> None:
    write_repository(tmp_path / "models", max_batch_size=4)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photo)
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    results = tmp_path / "scaling.json"
    tiny = ("--rounds", 1, "--seconds", 1, "--clients", 2, "--results", results, "--page", page)
    own = ("--repository", tmp_path / "models", "--image", photo)
    unknown = run(*own, *tiny, "--model", "none")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "lacks none; choose from pair" in unknown.stderr
    done = run(*own, *tiny, "--model", "pair")
    assert done.returncode == 0, done.stderr
    stored = json.loads(results.read_text("utf-8"))["pair"]
    assert stored["parameters"]["members"] == 2
    assert all(value > 0 for value in stored["parameters"].values())
    assert all(value > 0 for value in stored["measured"].values())
    assert "| pair | 64 |" in page.read_text("utf-8")
