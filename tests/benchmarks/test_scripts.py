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

    page = tmp_path / "other-servers.md"
    page.write_text(
        (ROOT / "docs/results/other-servers.md").read_text("utf-8").replace("| Coserve 0.", "| Other 0."),
        "utf-8",
    )
    drifted = script("peers_page.py", "--page", str(page), "--check")
    assert drifted.returncode == 1
    assert "run peers_page.py" in drifted.stderr
    assert script("peers_page.py", "--page", str(page)).returncode == 0
    assert page.read_text("utf-8") == (ROOT / "docs/results/other-servers.md").read_text("utf-8")


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


def test_trainings_are_compared_seed_by_seed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: benchmarks/dividing_page.py -->\n<!-- end -->\n", "utf-8")
    header = (
        "way,split,seed,top1,member_top1,nll,calibrated_nll,ece,calibrated_ece,disagreement,"
        "pairwise_disagreement,aurc_confidence,aurc_disagreement,processor"
    )
    rest = "0.8,0.5,0.4,0.02,0.01,0.1,0.1,0.03,,one (bf16)"
    trainings = [
        ("co-trained", 1, 0, 0.80),
        ("co-trained", 1, 1, 0.82),
        ("co-trained", 2, 0, 0.83),
        ("co-trained", 2, 1, 0.83),
        ("independent", 2, 1, 0.81),
    ]
    lines = [f"{way},{split},{seed},{top1},{rest}" for way, split, seed, top1 in trainings]
    (tmp_path / "wide_resnet10_1_cifar-fast_8_epochs.csv").write_text("\n".join([header, *lines]), "utf-8")
    done = script("dividing_page.py", "--results", str(tmp_path), "--page", str(page))
    assert done.returncode == 0, done.stderr
    kept = script("dividing_page.py", "--check")
    assert kept.returncode == 0, kept.stderr
    written = page.read_text("utf-8")
    assert "### wide_resnet10_1, recipe cifar-fast, 8 epochs" in written
    assert "| co-trained | 1 | 2 | 81.00% ± 1.41 |" in written
    assert "| S=2, co-trained, against S=1 | +2.00 | 1.00 | +3.00, +1.00 |" in written
    # Only one seed was trained both ways.
    assert "| S=2: co-trained against independent | +2.00 | – | +2.00 |" in written
