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

from coserve_server.engines.base import Batch
from coserve_server.engines.embedded.choice import Choice
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.embedded.members import LoadedMember, check_tensors, first_line, misfit
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.settings import Precision

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names; left to itself, it computes in bf16 wherever the processor can."""


class OpenVinoEngine(EmbeddedEngine):
    """An embedded engine whose members are OpenVINO models, each compiled for cores of its own."""

    def __init__(self, choice: Choice, cores: Cores, ensembles: Mapping[str, Ensemble]) -> None:
        """Load and warm every member; see `EmbeddedEngine`.

        Raises:
            SettingsError: the processor does not compute in that precision, or the cache cannot be written.
        """
        if choice.precision not in self.precisions():
            fault = f"openvino_precision: this processor does not compute in {choice.precision}"
            raise SettingsError([fault])
        self._core, self._precision = ov.Core(), choice.precision
        # A network's file may be overwritten while it is served.
        self._core.set_property({"ENABLE_MMAP": False})
        if choice.cache is not None:
            self._core.set_property({"CACHE_DIR": str(_writable(choice.cache))})
        super().__init__(self._load_one, choice, cores, ensembles)

    @staticmethod
    def precisions() -> list[Precision]:
        """What this processor computes in, as OpenVINO says; fp32 first."""
        capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return [precision for precision in HINTS if precision.upper() in capabilities]

    def _pins(self, budget: ThreadBudget) -> bool:
        """Members of several threads share a pool, whose threads would stay where they first worked."""
        return budget.threads == 1 or budget.lanes == 1

    def _load_one(self, ensemble: Ensemble, member: Member, lane: Lane) -> LoadedMember:
        """Compile a member; see `embedded.members.Load`."""
        try:
            # Read first: what OpenVINO keeps of a path alone may be that of the file that was there before.
            network = self._core.read_model(str(member.model_path))
            model = self._core.compile_model(network, "CPU", options(lane.threads, self._precision))
        # OpenVINO's errors share no base class but Exception.
        except Exception as error:
            raise misfit(ensemble, member, f"cannot be loaded: {_reason(error)}") from error
        check_tensors(ensemble, member, _types(model.inputs), _types(model.outputs), "f32")
        return _CompiledMember(member, model, lane)


def options(threads: int, precision: Precision) -> dict[str, object]:
    """How a member is compiled that runs on so many threads."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # The lane's thread is where it should be; OpenVINO would put every member on the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _writable(cache: Path) -> Path:
    """That folder, made if need be; OpenVINO itself says nothing of a file in its place."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        raise SettingsError([f"openvino_cache: {cache} cannot be written: {error.strerror}"]) from error


class _CompiledMember(LoadedMember):
    """One infer request, used again and again: a new one costs the smallest network 5 % of its time."""

    def __init__(self, member: Member, model: ov.CompiledModel, lane: Lane) -> None:
        super().__init__(member, lane)
        self._request = model.create_infer_request()

    def call(self) -> "_Call":
        return _Call(self._request, self.member)


class _Call:
    """Runs on the lane's own thread, and so to its end.

    What OpenVINO can stop runs on a thread that it keeps for whichever model asks next, on whatever cores.
    """

    def __init__(self, request: ov.InferRequest, member: Member) -> None:
        self._request, self._member, self._stopped = request, member, False

    def infer(self, batch: Batch) -> NDArray[np.float32]:
        if self._stopped:
            raise RuntimeError("stopped before it began")
        # OpenVINO takes no memory that is read-only, as a request's body is.
        tensor = ov.Tensor(np.require(batch, requirements=["C", "W"]), shared_memory=True)
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
    """OpenVINO's own reason, the last line that is not empty; before it come its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
