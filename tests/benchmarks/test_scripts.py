"""Scripts in benchmarks/."""

import subprocess
import sys
from pathlib import Path

import pytest

from coserve_server.ensembles.repository import read_repository

ROOT = Path(__file__).parents[2]


def script(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


SCRIPTS = ["early_stopping.py", "engines.py", "soak/soak.py", "peers/compare.py", "page_image.py"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_that_measure_have_help(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_the_page_of_other_servers_has_the_stored_figures(tmp_path: Path) -> None:
    kept = script("peers_page.py", "--check")
    assert kept.returncode == 0, kept.stderr

    page = tmp_path / "benchmark.md"
    page.write_text(
        (ROOT / "docs/results/benchmark.md").read_text("utf-8").replace("| Coserve 0.", "| Other 0."), "utf-8"
    )
    drifted = script("peers_page.py", "--page", str(page), "--check")
    assert drifted.returncode == 1
    assert "run peers_page.py" in drifted.stderr
    assert script("peers_page.py", "--page", str(page)).returncode == 0
    assert page.read_text("utf-8") == (ROOT / "docs/results/benchmark.md").read_text("utf-8")


def test_an_ensemble_of_random_weights_is_written(tmp_path: Path) -> None:
    done = script(
        "random_ensemble.py", "wide_resnet10_1", "--split", "2", "--repository", str(tmp_path / "r")
    )
    assert done.returncode == 0, done.stderr
    ensemble = read_repository(tmp_path / "r")["wide_resnet10_1_s2_fp32"]
    assert len(ensemble.members) == 2


def test_accuracy_is_plotted_against_cost(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    done = script("accuracy_cost.py", "--repository", str(ROOT / "model_repository"), "--output", str(plot))
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
