"""The names that `coserve_training` exports, and the cost of importing it."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import coserve_training


def loaded_after(code: str, folder: Path) -> set[str]:
    """Return the expensive packages that a fresh interpreter in `folder` has loaded after running `code`."""
    heavy = {"lightning", "numpy", "pydantic", "torch"}
    script = f"import sys\n{code}\nprint(*({heavy} & sys.modules.keys()))"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return set(run.stdout.split())


def test_importing_the_package_loads_no_framework(tmp_path: Path) -> None:
    assert loaded_after("import coserve_training", tmp_path) == set()


def test_counting_and_loading_runs_do_not_load_lightning(tmp_path: Path) -> None:
    code = "from coserve_training import calibrate_run, cost, load_run\ncost('wide_resnet10_1', 1)"
    assert loaded_after(code, tmp_path) & {"lightning"} == set()


def test_type_checkers_see_the_names_that_are_exported() -> None:
    tree = ast.parse(Path(coserve_training.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {}
    for node in checked.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name
            declared[alias.name] = getattr(import_module(str(node.module)), alias.name)
    assert declared == {name: getattr(coserve_training, name) for name in coserve_training.__all__}
    assert set(declared) <= set(dir(coserve_training))


def test_no_submodule_hides_an_exported_name() -> None:
    """Python sets an imported submodule as an attribute of its package."""
    folder = Path(coserve_training.__file__).parent
    submodules = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    assert not submodules & set(coserve_training.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'coserve_training' has no attribute 'divide'"):
        coserve_training.divide  # noqa: B018
