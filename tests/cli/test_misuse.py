"""Errors in the arguments: one line on stderr, status 2."""

import pytest
from typer.testing import CliRunner

from coserve_cli.main import app


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tran"], "No such command 'tran'. Did you mean 'train', 'triton'? See coserve --help"),
        (["keys", "revok"], "No such command 'revok'. Did you mean 'revoke'? See coserve keys --help"),
        (
            ["networks", "--dataset", "mnist"],
            "Invalid value for '--dataset': 'mnist' is not one of 'cifar10', 'cifar100', 'imagenet'. "
            "See coserve networks --help",
        ),
        (["classify"], "Missing argument 'IMAGE'. See coserve classify --help"),
        (["classify", "x", "--key", "k"], "--key needs --cert. See coserve classify --help"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="coserve")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {line}\n")


@pytest.mark.parametrize("group", ["bench", "config", "keys"])
def test_a_group_without_a_command_lists_its_commands(group: str) -> None:
    result = CliRunner().invoke(app, [group])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Usage: coserve {group}")
    assert "\nCommands:\n" in result.stderr
