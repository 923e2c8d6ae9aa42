"""The page's files: those of others are as published, and the page loads nothing from elsewhere."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from coserve_server.api.page import files
from coserve_server.api.page.files import read_files

FOLDER = Path(files.__file__).with_name("files")
VENDOR = FOLDER / "vendor"
MANIFEST = json.loads((VENDOR / "manifest.json").read_text("utf-8"))
OWN = [
    path
    for path in FOLDER.rglob("*")
    if path.suffix in {".html", ".css", ".js"} and VENDOR not in path.parents
]
PHOTOGRAPHS = Path(__file__).parents[3] / "integration/shipped/cifar10.zip"


def test_libraries_are_the_published_files() -> None:
    recorded = {name: file["sha256"] for package in MANIFEST for name, file in package["files"].items()}
    present = {path.name: path.read_bytes() for path in VENDOR.iterdir() if path.name != "manifest.json"}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in present.items()} == recorded


def test_every_library_has_its_licence_and_version() -> None:
    for package in MANIFEST:
        (licence,) = (name for name in package["files"] if name.endswith(".LICENSE"))
        assert "Copyright" in (VENDOR / licence).read_text("utf-8")
        (program,) = (VENDOR / name for name in package["files"] if not name.endswith(".LICENSE"))
        assert f"v{package['version']} " in program.read_text("utf-8")[:200].replace("\n", " ")


def test_examples_are_photographs_of_the_test_set() -> None:
    examples = sorted((FOLDER / "examples").glob("*.jpg"))
    assert len(examples) == 6
    assert sum(path.stat().st_size for path in examples) < 30_000
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        for path in examples:
            assert path.read_bytes() == archive.read(f"test/{path.name.replace('-', '/')}")


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_everything_that_a_file_names_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    for name in re.findall(r'(?:from |import\(|import )"(\.[^"]+)"', text):
        assert (path.parent / name).is_file(), name
    for name in re.findall(r'"{{files}}/([^"]+)"', text):
        assert name in read_files().contents
    assert not re.findall(r"""(?:src|href|import|fetch|url)\W{1,3}https?:""", text)
    assert len(text.splitlines()) <= 300
    assert max(len(line) for line in text.splitlines()) <= 180


def test_every_file_has_a_type_that_browsers_run() -> None:
    contents = read_files().contents
    assert set(contents) == {
        path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()
    }
    assert contents["scripts/main.js"][1] == "text/javascript"
    assert contents["page.css"][1] == "text/css"


def test_the_address_changes_with_any_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    digests = set()
    for name, text in (("a.js", "1"), ("b.js", "1"), ("b.js", "2")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        monkeypatch.setattr(files, "_FOLDER", folder)
        digests.add(read_files.__wrapped__().digest)
    assert len(digests) == 3
