"""What `coserve doctor` finds: each component is asked for its facts."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coserve_cli.requirements import missing_libraries
from coserve_cli.version import coserve_version

if TYPE_CHECKING:
    from coserve_server.engines.check import EngineState
    from coserve_server.machine.cores import CoreLimits
    from coserve_server.machine.processor import Processor

PERF_ANALYZER = "bench perf-analyzer"
"""The one command of a group that needs more than the group."""

OPTIONAL = {
    "gpu": "coserve serve --gpus",
    "openvino": "coserve serve --engine openvino",
    "heic": "HEIC photographs",
    "otel": "traces (otlp_endpoint)",
    "plots": "plots of evaluations and benchmarks",
    "tensorboard": "coserve train --tensorboard",
}
"""Extras that no command needs, and what they are for."""


@dataclass(frozen=True)
class Machine:
    """The machine.

    Attributes:
        usable: number of cores that the process may use.
        limits: what limits them.
        load: average number of running processes in the last minute; None if unknown.
        available_bytes: memory that the process can take; None if unknown.
        gpus: NVIDIA's GPUs.
    """

    usable: int
    limits: "CoreLimits"
    load: float | None
    available_bytes: int | None
    processor: "Processor"
    gpus: list[str]


@dataclass(frozen=True)
class Lack:
    """What is missing, and the command that installs it; empty if none does."""

    missing: str
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """What this machine can run.

    Attributes:
        triton_wheel: version of nvidia-pytriton, or None and `triton_fault`.
        perf_analyzer: path of the program, or None.
        docker: version of Docker's engine; empty if it does not run, None without Docker.
        commands: what each command lacks.
        optional: what each optional extra lacks.
    """

    version: str
    python: str
    system: str
    machine: Machine
    engines: "list[EngineState]"
    triton_wheel: str | None
    triton_fault: str | None
    perf_analyzer: Path | None
    docker: str | None
    compose: str | None
    commands: dict[str, list[Lack]]
    optional: dict[str, list[Lack]]

    @property
    def faults(self) -> list[str]:
        """What is installed but does not work."""
        return [f"{engine.name}: {engine.fault}" for engine in self.engines if engine.fault]


def diagnose(extras: Mapping[str, str]) -> Diagnosis:
    """Ask the components; takes about a second, most of it to import the engines.

    Args:
        extras: the extras that each command needs, separated by commas.
    """
    from coserve_server.engines.check import check_engines
    from coserve_server.machine.programs import compose_version, docker_version

    wheel, fault = _find_triton()
    perf_analyzer = _find_perf_analyzer()
    commands = {name: _lacks(needed) for name, needed in extras.items()}
    if fault is not None and not commands["triton"]:
        commands["triton"] = [Lack(fault, "")]
    commands[PERF_ANALYZER] = list(commands["bench"])
    if perf_analyzer is None:
        commands[PERF_ANALYZER].append(Lack("perf_analyzer", "make perf-analyzer"))
    machine = _examine_machine()
    engines = check_engines()
    optional = {extra: _lacks(extra) for extra in OPTIONAL if extra != "gpu"}
    if machine.gpus:
        optional["gpu"] = _find_gpu_lacks(engines)
    return Diagnosis(
        version=coserve_version(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        machine=machine,
        engines=engines,
        triton_wheel=wheel,
        triton_fault=fault,
        perf_analyzer=perf_analyzer,
        docker=docker_version(),
        compose=compose_version(),
        commands=commands,
        optional=optional,
    )


def _find_gpu_lacks(engines: "Sequence[EngineState]") -> list[Lack]:
    """Return what ONNX Runtime lacks to use the GPUs of this machine."""
    from coserve_server.engines.check import find_cuda_fault

    if not any("CUDA" in engine.runs_on for engine in engines):
        return [Lack("an ONNX Runtime for GPUs", "pip uninstall onnxruntime; pip install 'coserve[gpu]'")]
    fault = find_cuda_fault()
    return [] if fault is None else [Lack(fault, "")]


def _examine_machine() -> Machine:
    from coserve_server.machine.cores import core_limits, usable_cores
    from coserve_server.machine.memory import available_bytes
    from coserve_server.machine.processor import read_processor
    from coserve_server.machine.programs import list_gpus

    memory = available_bytes()
    try:
        load = os.getloadavg()[0]
    # Windows has none, and some systems cannot tell.
    except (OSError, AttributeError):
        load = None
    return Machine(
        usable=usable_cores().count,
        limits=core_limits(),
        load=load,
        available_bytes=None if memory == float("inf") else int(memory),
        processor=read_processor(),
        gpus=list_gpus(),
    )


def _lacks(extras: str) -> list[Lack]:
    """Return what the libraries of these extras lack, as one item."""
    missing = [name for extra in extras.split(",") for name in missing_libraries(extra)]
    if not missing:
        return []
    return [Lack(", ".join(dict.fromkeys(missing)), f"pip install 'coserve[{extras}]'")]


def _find_triton() -> tuple[str | None, str | None]:
    """Return the version of Triton's wheel, or why it cannot be used."""
    from importlib.metadata import version

    from coserve_triton.errors import TritonError
    from coserve_triton.installation import find_installation

    try:
        find_installation()
    except TritonError as error:
        return None, str(error)
    return version("nvidia-pytriton"), None


def _find_perf_analyzer() -> Path | None:
    from coserve_bench.errors import BenchError
    from coserve_bench.perf_analyzer.program import find_program

    try:
        return find_program(None)
    except BenchError:
        return None
