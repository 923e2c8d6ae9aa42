"""The repository's root, from which people start Python."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_folder_hides_a_library() -> None:
    """A folder named as a library is imported in its place by `python -c`, and torch asks for triton."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()}
    elsewhere = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    known = {name for name in folders if PathFinder.find_spec(name, elsewhere)}
    assert not (known - {"tests", "docs"}) | (folders & {"triton", "tritonserver", "tritonclient"})
