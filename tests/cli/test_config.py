import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coserve_cli.main import app
from tests.server.onnx_repository import write_repository


def coserve(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "coserve.toml"
    file.write_text(f'repository = "{write_repository(tmp_path / "models")}"\nmax_images = 3\n')
    return file


def test_every_setting_is_listed_with_its_meaning() -> None:
    listed = coserve("config", "list").stdout
    assert "port (integer, default 8000)\n    TCP port to listen on; 0 picks a free one" in listed
    assert "triton_token (secret)\n    Bearer token" in listed


def test_shows_each_value_and_its_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_PORT", "9000")
    shown = coserve("config", "show", "--config", file).stdout
    assert re.search(r"^max_images +file +3$", shown, re.MULTILINE)
    assert re.search(r"^port +environment +9000$", shown, re.MULTILINE)
    assert re.search(r"^api_keys_file +default$", shown, re.MULTILINE)
    content = json.loads(coserve("config", "show", "--config", file, "--json").stdout)
    assert content["port"] == {"value": 9000, "source": "environment"}
    assert content["min_members"] == {"value": None, "source": "default"}


def test_secrets_are_not_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_TRITON_TLS", "true")
    monkeypatch.setenv("COSERVE_TRITON_TOKEN", "hunter2")
    for options in ([], ["--json"]):
        shown = coserve("config", "show", "--config", file, *options)
        assert shown.exit_code == 0
        assert "hunter2" not in shown.output
        assert "**********" in shown.output


def test_a_valid_file_has_no_fault_and_an_invalid_one_has_a_line_for_each(file: Path) -> None:
    checked = coserve("config", "check", file)
    assert (checked.exit_code, checked.stdout) == (0, f"{file}: no fault\n")
    file.write_text("prot = 1\nmax_images = 0\n")
    checked = coserve("config", "check", file)
    assert checked.exit_code == 1
    assert checked.stderr.splitlines() == [
        "error: max_images: Input should be greater than or equal to 1",
        "error: prot: no setting has this name; the nearest is port",
    ]


def test_a_missing_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    shown = coserve("config", "show", "--config", tmp_path / "none.toml")
    assert shown.exit_code == 1
    assert (
        shown.stderr
        == f"error: settings: {tmp_path / 'none.toml'} cannot be read: No such file or directory\n"
    )
