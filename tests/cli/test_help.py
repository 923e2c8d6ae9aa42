import subprocess
import sys

import pytest
from typer.testing import CliRunner

from coserve_cli.main import app

VERBS = [command.callback.__name__ for command in app.registered_commands if command.callback]
HEAVY = {"torch", "lightning", "fastapi", "onnxruntime", "onnx", "tritonclient", "httpx", "numpy", "PIL"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Usage: coserve {verb}" in result.stdout


def test_lists_every_verb() -> None:
    result = CliRunner().invoke(app, ["-h"])
    assert result.exit_code == 0
    assert len(VERBS) >= 6
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["bench", "http", "--help"],
        ["bench", "perf-analyzer", "--help"],
        ["bench", "speedup", "--help"],
        ["config", "show", "--help"],
        ["keys", "create", "--help"],
        *([verb, "--help"] for verb in VERBS),
    ],
    ids=" ".join,
)
def test_help_imports_no_component(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from coserve_cli.main import app\n"
        f"app({arguments}, standalone_mode=False)\n"
        "print('imported:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(done.stdout.rpartition("imported: ")[2].split())
    assert "coserve_cli.main" in modules
    assert not modules & HEAVY
