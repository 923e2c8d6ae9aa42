"""benchmarks/gpu.py, without a GPU."""

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CUT_OFF = "cut off at its deadline"
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
        (
            'print(\'{"status": "cut off at its deadline"}\')',
            "cut off at its deadline",
            [{"status": CUT_OFF}],
        ),
        ("print('{\"status\": 2}')", "failed: a command that it ran; see its rows", [{"status": 2}]),
        ("pass", "done", []),
    ],
    ids=["late", "failed", "late command", "command", "done"],
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
    result = gpu.run_stage("machine", 5 if "sleep" in body else 60, arguments)
    assert (result["outcome"], result["rows"]) == (outcome, rows)


def test_stages_without_time_are_named(gpu: Any, arguments: argparse.Namespace, tmp_path: Path) -> None:
    arguments.minutes = 0.01
    gpu.run_stages(arguments)
    assert json.loads((tmp_path / "gpu.json").read_text())["stages"] == {
        "machine": {"outcome": "no time left"}
    }


@pytest.mark.parametrize(
    ("options", "status", "fault"),
    [
        (["--only", "speed,sped"], 2, "--only: no stage sped; stages are machine, speed"),
        (["--minutes", "0"], 2, "--minutes: a positive number is needed"),
        (["--minutes", "nan"], 2, "--minutes: a positive number is needed"),
        (["--output", os.devnull], 1, "error: [Errno 17] File exists"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: list[str], status: int, fault: str) -> None:
    done = run_script("--output", tmp_path, "--device", "cpu", *options)
    assert (done.returncode, fault in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_without_a_gpu_is_told_in_one_line(tmp_path: Path) -> None:
    done = run_script("--output", tmp_path / "results", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert re.fullmatch(r"error: PyTorch \S+ finds no GPU; --device cpu tries all without one\n", done.stderr)
    assert not (tmp_path / "results").exists()


def test_a_signal_ends_the_stage_too(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--output", tmp_path, "--device", "cpu", "--only", "speed"]
    script = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "speed.log").exists():
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.communicate(timeout=60)[1] == f"interrupted; {tmp_path} has what was measured\n"
    assert script.returncode == 130
    children = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in children if str(tmp_path).encode() in line]


def run_script(*options: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, SCRIPT, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
