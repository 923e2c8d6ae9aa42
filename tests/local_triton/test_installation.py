import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NamedTuple

import pytest

from coserve_triton import installation
from coserve_triton.errors import TritonError
from coserve_triton.installation import find_installation


class Version(NamedTuple):
    major: int
    minor: int


class Wheel:
    """An unpacked wheel in a folder, with stubs for two Pythons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for version in ("3.9", "3.11"):
            stub = folder / "pytriton/tritonserver/python_backend_stubs" / version / installation.STUB
            stub.parent.mkdir(parents=True)
            stub.touch()

    def locate_file(self, path: str) -> Path:
        return self.folder / path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    wheel = Wheel(tmp_path)
    monkeypatch.setattr(installation, "distribution", lambda name: wheel)
    monkeypatch.setattr(sys, "version_info", Version(3, 11))
    return wheel


def configure(monkeypatch: pytest.MonkeyPatch, library_folder: Path) -> None:
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda key: str(library_folder))
    monkeypatch.setattr(sys, "base_prefix", str(library_folder))


def test_the_running_pythons_stub_and_library(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, tmp_path)
    (tmp_path / "libpython3.11.so.1.0").touch()
    found = find_installation()
    assert found.server == tmp_path / "pytriton/tritonserver/bin/tritonserver"
    assert found.python_backend[-1].parts[-2:] == ("3.11", installation.STUB)
    assert found.library_path == (tmp_path / "nvidia_pytriton.libs", tmp_path)


def test_a_missing_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "distribution", missing)
    with pytest.raises(TritonError, match=r"not installed: pip install 'coserve\[triton\]'"):
        find_installation()


def test_a_python_without_stub(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", Version(3, 14))
    with pytest.raises(TritonError, match=r"with Python 3\.9, 3\.11, not with 3\.14"):
        find_installation()


def test_a_python_without_shared_library(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    configure(monkeypatch, tmp_path)
    monkeypatch.setattr(installation.ctypes, "CDLL", missing)
    with pytest.raises(TritonError, match=r"libpython3\.11\.so\.1\.0, which this Python .* lacks: install"):
        find_installation()
