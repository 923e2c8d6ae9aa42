"""The embedded engine whose members are compiled by OpenVINO.

Options: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.embedded.members import LoadedMember, check_tensors, misfit
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import SettingsError, first_line
from coserve_server.machine.cores import Cores
from coserve_server.settings import Precision

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names for the precisions. Its default is bf16 on every processor that supports it."""


class OpenVinoEngine(EmbeddedEngine):
    """An embedded engine whose members are OpenVINO models, each compiled for cores of its own."""

    def __init__(self, options: EngineOptions, cores: Cores, ensembles: Mapping[str, Ensemble]) -> None:
        """Load and warm every member; see `EmbeddedEngine`.

        Raises:
            SettingsError: the processor does not support the precision, or the cache cannot be written.
        """
        if options.precision not in self.precisions():
            fault = f"openvino_precision: this processor does not support {options.precision}"
            raise SettingsError([fault])
        self._core = ov.Core()
        self._precision = options.precision
        # A network's file may be overwritten while it is served.
        self._core.set_property({"ENABLE_MMAP": False})
        if options.cache is not None:
            self._core.set_property({"CACHE_DIR": str(_writable(options.cache))})
        super().__init__(self._compile, options, cores, ensembles)

    @staticmethod
    def precisions() -> list[Precision]:
        """Return the precisions that OpenVINO supports on this processor, fp32 first."""
        capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return [precision for precision in HINTS if precision.upper() in capabilities]

    def _pins(self, budget: ThreadBudget) -> bool:
        """Return False if members share a thread pool, whose threads would stay where they first worked."""
        return budget.threads == 1 or budget.lanes * budget.copies == 1

    def _compile(self, ensemble: Ensemble, member: Member, lane: Lane) -> LoadedMember:
        """Compile a member; see `embedded.members.Load`."""
        try:
            # Read first: given only the path, OpenVINO may use its cache of the file that was there before.
            network = self._core.read_model(str(member.model_path))
            model = self._core.compile_model(network, "CPU", compile_options(lane.threads, self._precision))
        # OpenVINO's errors share no base class but Exception.
        except Exception as error:
            raise misfit(ensemble, member, f"cannot be loaded: {_reason(error)}") from error
        check_tensors(ensemble, member, _types(model.inputs), _types(model.outputs), "f32")
        return _CompiledMember(member, model, lane)


def compile_options(threads: int, precision: Precision) -> dict[str, object]:
    """Return OpenVINO's options for a member that runs on `threads` threads."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # The lane is pinned already; OpenVINO would pin every member to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _writable(cache: Path) -> Path:
    """Return the folder, created if needed; OpenVINO does not report a file in its place."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        raise SettingsError([f"openvino_cache: {cache} cannot be written: {error.strerror}"]) from error


class _CompiledMember(LoadedMember):
    """A member with one infer request, reused: a new one costs the smallest network 5% of its time."""

    def __init__(self, member: Member, model: ov.CompiledModel, lane: Lane) -> None:
        super().__init__(member, lane)
        self._request = model.create_infer_request()

    def call(self) -> "_Call":
        return _Call(self._request, self.member)


class _Call:
    """A run on the lane's own thread, which cannot be interrupted.

    OpenVINO can only stop runs on threads of its own, which it moves between models and cores.
    """

    def __init__(self, request: ov.InferRequest, member: Member) -> None:
        self._request = request
        self._member = member
        self._stopped = False

    def infer(self, images: Images) -> NDArray[np.float32]:
        if self._stopped:
            raise RuntimeError("stopped before it started")
        # OpenVINO refuses read-only memory, such as a request's body.
        tensor = ov.Tensor(np.require(images, requirements=["C", "W"]), shared_memory=True)
        try:
            self._request.set_tensor(self._member.input_name, tensor)
            self._request.infer()
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error
        logits: NDArray[np.float32] = self._request.get_tensor(self._member.output_name).data.copy()
        return logits

    def stop(self) -> None:
        self._stopped = True


def _types(ports: list[Any]) -> dict[str, str]:
    return {name: port.element_type.get_type_name() for port in ports for name in port.names}


def _reason(error: Exception) -> str:
    """Return OpenVINO's reason: the last non-empty line, after those that name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
