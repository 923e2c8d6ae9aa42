import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_server.engines import installed
from coserve_server.machine import cores
from tests.cli.test_help import HEAVY
from tests.project import PROJECT


def test_versions_engines_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: cores.Cores(3, None))
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"coserve {PROJECT['version']}",
        f"Python {platform.python_version()}, 3 usable cores",
        f"engines: onnxruntime {version('onnxruntime')}, openvino {version('openvino')}, "
        f"tritonclient {version('tritonclient')}",
    ]


def test_a_bare_installation_has_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version", missing)
    assert CliRunner().invoke(app, ["--version"]).stdout.endswith("\nengines: none installed\n")


def test_the_version_is_found_without_importing_a_library() -> None:
    script = (
        "import sys\n"
        "from coserve_cli.main import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "print('imported:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(done.stdout.rpartition("imported: ")[2].split())
    assert not modules & (HEAVY | {"rich", "openvino", "pydantic"})
