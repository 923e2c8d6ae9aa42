import json
import re
import shlex
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from typer.testing import CliRunner

from coserve_cli import diagnosis, requirements
from coserve_cli.main import EXTRAS, VERBS, app
from coserve_server.engines import check
from coserve_server.machine import cores, memory, programs
from coserve_server.machine.cores import CoreLimits, Cores
from coserve_server.machine.topology import PhysicalCore
from tests.project import PROJECT

TWO_CORES = (PhysicalCore((0, 1)), PhysicalCore((2, 3), node=1))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with two of eight cores, on which everything is installed."""
    facts: dict[str, Any] = {"missing": {}, "gpus": [], "docker": "28.1", "triton": ("0.7.0", None)}
    facts["engines"] = [check.EngineState("onnxruntime", {"onnxruntime": "1.32"}, ("CPU",))]
    monkeypatch.setattr(cores, "usable_cores", lambda: Cores(2, None))
    monkeypatch.setattr(cores, "core_limits", lambda: CoreLimits(8, (0, 1, 2, 3), 2.5, TWO_CORES))
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * 2**30)
    monkeypatch.setattr(programs, "list_gpus", lambda: facts["gpus"])
    monkeypatch.setattr(programs, "docker_version", lambda: facts["docker"])
    monkeypatch.setattr(programs, "compose_version", lambda: "2.40")
    monkeypatch.setattr(check, "check_engines", lambda: facts["engines"])
    monkeypatch.setattr(check, "find_cuda_fault", lambda: facts.get("cuda_fault"))
    monkeypatch.setattr(diagnosis, "missing_libraries", lambda extra: facts["missing"].get(extra, []))
    monkeypatch.setattr(diagnosis, "_find_triton", lambda: facts["triton"])
    monkeypatch.setattr(diagnosis, "_find_perf_analyzer", lambda: facts.get("perf_analyzer"))
    return facts


def words(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exit_code == status, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    return " ".join(result.stdout.split())


def test_a_machine_that_can_do_everything(machine: dict[str, Any]) -> None:
    machine["perf_analyzer"] = "/opt/perf_analyzer"
    shown = words()
    assert f"coserve {PROJECT['version']}, Python" in shown
    assert "2 usable of 8, affinity 4, quota 2.5, shared with other processes" in shown
    assert "topology 2 physical cores with 4 hyper-threads, 1 package, 2 NUMA nodes of 1 + 1 cores" in shown
    assert "memory 3.0 GiB available" in shown
    assert "onnxruntime onnxruntime 1.32: CPU" in shown
    assert "Docker engine 28.1, Compose 2.40" in shown
    assert f"ready {', '.join([*EXTRAS, 'bench perf-analyzer'])}" in shown
    assert "missing" not in shown
    assert "Optional" not in shown


def test_what_is_missing_comes_with_the_command_that_installs_it(machine: dict[str, Any]) -> None:
    machine["missing"] = {"train": ["torch", "lightning"], "heic": ["pillow-heif"]}
    shown = words()
    assert "train missing: torch, lightning pip install 'coserve[train]'" in shown
    assert "heic for HEIC photographs missing: pillow-heif pip install 'coserve[heic]'" in shown
    assert "bench perf-analyzer missing: perf_analyzer make perf-analyzer" in shown
    assert "train" not in shown.partition(" ready ")[2].partition(" missing")[0].split(", ")


def test_the_status_tells_whether_the_given_commands_work(machine: dict[str, Any]) -> None:
    machine["missing"] = {"train": ["torch"]}
    words("serve", "classify")
    words("serve", "train", status=1)


def test_an_engine_that_does_not_work_is_a_failure(machine: dict[str, Any]) -> None:
    machine["engines"] = [check.EngineState("openvino", {"openvino": "2026.4"}, fault="libtbb: not found")]
    assert "openvino 2026.4 does not work: libtbb: not found" in words(status=1)


def test_gpus_need_another_onnxruntime(machine: dict[str, Any]) -> None:
    machine["gpus"] = ["NVIDIA H200, 143771 MiB, 570.1"]
    shown = words()
    assert "GPU 0 NVIDIA H200, 143771 MiB, 570.1" in shown
    assert "pip uninstall onnxruntime; pip install 'coserve[gpu]'" in shown
    machine["engines"] = [check.EngineState("onnxruntime", {"onnxruntime-gpu": "1.32"}, ("CUDA", "CPU"))]
    assert "coserve[gpu]" not in words()
    machine["cuda_fault"] = "ONNX Runtime 1.32 cannot use CUDA: libcudnn.so.9: cannot open it"
    assert "gpu for coserve serve --gpus ONNX Runtime 1.32 cannot use CUDA: libcudnn.so.9: can" in words()


def test_triton_s_wheel_can_be_missing(machine: dict[str, Any]) -> None:
    machine["triton"] = (None, "Triton runs models with Python 3.10, not with 3.13")
    assert "triton Triton runs models with Python 3.10, not with 3.13" in words("serve")
    words("triton", status=1)


@pytest.mark.parametrize(("engine", "text"), [(None, "none"), ("", "no engine answers")])
def test_docker_without_an_engine(machine: dict[str, Any], engine: str | None, text: str) -> None:
    machine["docker"] = engine
    assert f"Docker {text}" in words()


def test_json(machine: dict[str, Any]) -> None:
    machine["missing"] = {"server": ["fastapi"]}
    result = CliRunner().invoke(app, ["doctor", "serve", "--json"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["machine"]["usable"] == 2
    assert content["machine"]["limits"]["quota"] == 2.5
    assert content["engines"][0]["runs_on"] == ["CPU"]
    assert content["commands"]["serve"] == [
        {"missing": "fastapi", "install": "pip install 'coserve[server]'"}
    ]
    assert content["commands"]["train"] == []
    assert content["faults"] == []


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(app, ["doctor", "sreve"])
    assert result.exit_code == 2
    assert "'sreve' is none of divide, networks," in result.stderr


def test_without_an_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(requirements, "requires", missing)
    monkeypatch.setattr(diagnosis, "missing_libraries", requirements.missing_libraries)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_install_commands_name_extras_that_exist(machine: dict[str, Any]) -> None:
    machine["missing"] = {extra: ["something"] for extra in PROJECT["optional-dependencies"]}
    machine["gpus"] = ["NVIDIA H200"]
    content = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert set(content["commands"]) == {*VERBS, "bench perf-analyzer"} - {"doctor"}
    lacks = [lack for part in ("commands", "optional") for all_ in content[part].values() for lack in all_]
    for install in {lack["install"] for lack in lacks}:
        assert shlex.split(install)
        for extras in re.findall(r"coserve\[(.+?)\]", install):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
