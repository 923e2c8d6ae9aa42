"""The documentation as a site: it builds without a broken link, and has what the code defines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coserve_cli.main import VERBS

pytest.importorskip("mkdocs", reason="the extra docs is for Python 3.11 and newer")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_reference_pages_come_from_the_code(site: Path) -> None:
    commands = (site / "reference/command-line.html").read_text("utf-8")
    assert all(f'id="coserve-{verb}' in commands for verb in VERBS)
    assert "--co-training-weight" in commands
    api = json.loads((site / "reference/openapi.json").read_text("utf-8"))
    operations = (site / "reference/operations.html").read_text("utf-8")
    assert all(path.partition("{")[0] in operations for path in api["paths"])
    assert "/v1/classify" in api["paths"]
    training = (site / "reference/python/training.html").read_text("utf-8")
    assert 'id="coserve_training.member_network"' in training


def test_the_site_needs_no_other_server(site: Path) -> None:
    """Fonts, scripts and styles lie in the site, so that it can be read offline."""
    for page in ("index.html", "results/performance.html"):
        text = (site / page).read_text("utf-8")
        assert 'src="http' not in text
        assert 'rel="stylesheet" href="http' not in text


def test_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    assert (site / "files/benchmarks/results/speedup/wide_resnet16_4.json").is_file()
