from importlib.metadata import PackageNotFoundError

import pytest

from coserve_cli import requirements

LINES = [
    "typer>=0.19",
    "colorama; python_version >= '3.0'",
    "torch>=2.7; extra == 'train'",
    "tomli>=2; (python_version < '3.0') and extra == 'train'",
    "pillow>=11.3; extra == 'train'",
    "onnxruntime>=1.20; extra == 'server'",
    "uvicorn<0.55,>=0.48; extra == 'server'",
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(requirements, "requires", lambda _: LINES)
    monkeypatch.setattr(requirements, "version", version)
    return versions


def test_what_is_missing_on_this_python(installed: dict[str, str]) -> None:
    installed["pillow"] = "12.0"
    assert requirements.missing_libraries("train") == ["torch"]


def test_a_version_out_of_bounds_is_named(installed: dict[str, str]) -> None:
    installed |= {"onnxruntime": "1.19", "uvicorn": "0.50"}
    assert requirements.missing_libraries("server") == ["onnxruntime 1.19 (needs >=1.20)"]


def test_a_prerelease_counts(installed: dict[str, str]) -> None:
    installed |= {"torch": "2.9.0.dev20250901", "pillow": "11.3"}
    assert requirements.missing_libraries("train") == []


def test_onnxruntime_for_gpus_stands_in(installed: dict[str, str]) -> None:
    installed |= {"onnxruntime-gpu": "1.22", "uvicorn": "0.50"}
    assert requirements.missing_libraries("server") == []
