import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coserve_cli.main import app


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COSERVE_API_KEYS_FILE", str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_a_key_is_printed_once_listed_and_revoked(file: Path) -> None:
    key = keys("create", "lab").stdout.removesuffix("\n")
    assert keys("create", "ops", "--role", "admin").exit_code == 0
    listed = keys("list").stdout
    assert listed == "lab  infer\nops  admin\n"
    assert hashlib.sha256(key.encode()).hexdigest() in file.read_text()
    assert key not in file.read_text()
    assert keys("revoke", "lab").exit_code == 0
    assert keys("list").stdout == "ops  admin\n"


def test_errors_are_one_line(file: Path) -> None:
    keys("create", "lab")
    for arguments, line in (
        (
            ["create", "lab"],
            f"error: {file} already has a key 'lab'; revoke it first, or choose another name",
        ),
        (
            ["create", "a b"],
            "error: 'a b' is not a valid key name: use at most 64 letters, digits, dots, - and _",
        ),
        (["revoke", "ops"], f"error: {file} has no key 'ops'; it has lab"),
    ):
        done = keys(*arguments)
        assert done.exit_code == 1
        assert done.stderr == f"{line}\n"
    assert keys("create", "ops", "--role", "root").exit_code == 2
