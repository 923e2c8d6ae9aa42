"""pyproject.toml, the documentation and the noxfile agree about versions."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from coserve_export.compatibility import OLDEST
from tests.project import PROJECT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_promised_python_has_a_session(noxfile: ModuleType) -> None:
    name = "Programming Language :: Python :: 3."
    classified = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith(name)]
    assert classified == noxfile.PYTHONS
    assert PROJECT["requires-python"] == f">={noxfile.PYTHONS[0]}"
    assert (
        f"You need Python {noxfile.PYTHONS[0]} to {noxfile.PYTHONS[-1]}." in (ROOT / "README.md").read_text()
    )


def test_every_session_is_documented(noxfile: ModuleType) -> None:
    page = (ROOT / "docs/contributing.md").read_text()
    rows = "".join(re.findall(r"^\| (`.+?) \|", page, re.MULTILINE))
    sessions = {name for name, value in vars(noxfile).items() if hasattr(value, "python")}
    assert len(sessions) > 5
    for session in sessions:
        assert f"`{session}" in rows


def test_the_oldest_onnxruntime_is_the_one_that_exports_ask_for(noxfile: ModuleType) -> None:
    assert noxfile.OLDEST_ONNXRUNTIME.startswith(f"{OLDEST.onnxruntime}.")


def test_lower_bounds_are_exact_versions(noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    bounds = noxfile.lower_bounds(*noxfile.EXTRAS)
    assert all(re.fullmatch(r"[\w\[\]-]+==[\d.]+ *(;.*)?", bound) for bound in bounds)
    assert len(bounds) > 20


@pytest.mark.parametrize("index", ["", "file:///wheels/simple"])
def test_an_index_for_pytorch_can_be_given(index: str) -> None:
    command = ["make", "--dry-run", "--always-make", "setup", f"TORCH_INDEX={index}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (install,) = [line for line in done.stdout.splitlines() if "--editable" in line]
    assert ("--extra-index-url" in install) is bool(index)
    assert index in install
