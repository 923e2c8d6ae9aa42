"""benchmarks/gpu.py, without a GPU."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu")


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(output=tmp_path, device="cpu", data=None, only="machine", minutes=1)


def test_stages_run_apart_and_leave_json(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--output", tmp_path, "--device", "cpu", "--only", "machine,training"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert stages["machine"]["outcome"] == "done", stages
    assert stages["machine"]["rows"][2]["peak_tflops"]["fp32"] > 0
    assert stages["training"]["rows"] == [{"skipped": "no --data"}]


@pytest.mark.parametrize(
    ("body", "outcome", "rows"),
    [
        ('print(\'{"a": 1}\\n{"b"\', flush=True); time.sleep(60)', "cut off at its deadline", [{"a": 1}]),
        ('print(\'{"a": 1}\'); raise SystemExit("no GPU")', "failed: no GPU", [{"a": 1}]),
        ("print('{\"status\": 2}')", "failed: a command that it ran; see its rows", [{"status": 2}]),
        ("pass", "done", []),
    ],
    ids=["late", "failed", "command", "done"],
)
def test_a_stage_that_ends_early_keeps_its_rows(
    gpu: Any,
    arguments: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    outcome: str,
    rows: list[dict[str, Any]],
) -> None:
    script = tmp_path / "stage.py"
    script.write_text(f"import time\n{body}\n")
    monkeypatch.setattr(gpu, "__file__", str(script))
    result = gpu.run_stage("machine", 5 if "cut off" in outcome else 60, arguments)
    assert (result["outcome"], result["rows"]) == (outcome, rows)


def test_stages_without_time_are_named(gpu: Any, arguments: argparse.Namespace, tmp_path: Path) -> None:
    arguments.minutes = 0.01
    gpu.run_stages(arguments)
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"] == {
        "machine": {"outcome": "no time left"}
    }


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--output", tmp_path, "--only", "speed,sped"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--only: no stage sped; stages are machine, speed" in done.stderr
