"""Check which engines work on this machine, by importing their libraries."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from coserve_server.engines.installed import installed_libraries
from coserve_server.errors import SettingsError, first_line


@dataclass(frozen=True)
class EngineState:
    """What an engine can do here.

    Attributes:
        name: `onnxruntime`, `openvino` or `triton`.
        libraries: versions of its installed distributions, by their names; empty if it is not installed.
        runs_on: ONNX Runtime's execution providers, or OpenVINO's devices and precisions.
        fault: why it is installed but does not work, and what to do; None if it works.
    """

    name: str
    libraries: dict[str, str]
    runs_on: tuple[str, ...] = ()
    fault: str | None = None


def check_engines() -> list[EngineState]:
    """Check the embedded engines, and the client of Triton."""
    return [
        _check("onnxruntime", _list_providers),
        _check("openvino", _list_precisions),
        _check("triton", _import_triton),
    ]


def find_cuda_fault() -> str | None:
    """Return why ONNX Runtime cannot use the first GPU, such as a missing cuDNN; None if it can."""
    from coserve_server.engines.onnxruntime.gpus import check_gpus

    try:
        check_gpus((0,))
    except SettingsError as error:
        return "; ".join(error.faults).removeprefix("gpus: ")
    return None


def _check(name: str, ask: Callable[[], list[str]]) -> EngineState:
    libraries = installed_libraries(name)
    if not libraries:
        return EngineState(name, {})
    if len(libraries) > 1:
        both = " ".join(libraries)
        fault = f"both overwrite each other's files: pip uninstall {both}, then install one of them"
        return EngineState(name, libraries, fault=fault)
    try:
        return EngineState(name, libraries, tuple(ask()))
    # A library that does not fit the system fails with errors of many kinds.
    except Exception as error:
        (library,) = libraries
        fault = f"{first_line(error)}: pip install --force-reinstall {library}"
        return EngineState(name, libraries, fault=fault)


def _list_providers() -> list[str]:
    providers = import_module("onnxruntime").get_available_providers()
    return [name.removesuffix("ExecutionProvider") for name in providers]


def _list_precisions() -> list[str]:
    from coserve_server.engines.factory import precisions

    return list(precisions("openvino"))


def _import_triton() -> list[str]:
    import_module("tritonclient.grpc")
    return []
