"""Runs each member as an ONNX Runtime session of this process, on cores or on GPUs."""

from collections.abc import Mapping

from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime.gpus import GpuLoader, gpu_lanes
from coserve_server.engines.onnxruntime.sessions import load_member
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.machine.cores import Cores


class OnnxRuntimeEngine(EmbeddedEngine):
    """An embedded engine whose members are ONNX Runtime sessions."""

    def __init__(self, options: EngineOptions, cores: Cores, ensembles: Mapping[str, Ensemble]) -> None:
        """Load and warm every member; see `EmbeddedEngine`.

        Raises:
            SettingsError: the options' GPUs cannot be used.
        """
        self._gpus = options.gpus
        self._precision = options.gpu_precision
        load = GpuLoader(options) if options.gpus else load_member
        super().__init__(load, options, cores, ensembles)

    def describe(self, ensemble: Ensemble) -> str:
        """Return where the ensemble's members run."""
        if not self._gpus:
            return super().describe(ensemble)
        gpus = ", ".join(map(str, self._gpus))
        return f"at once, each on a stream of its own of GPU {gpus}, in {self._precision}"

    def planned_copies(self, ensemble: Ensemble) -> int:
        """Return how many copies of an ensemble are loaded; members on GPUs have copies of their own."""
        return 1 if self._gpus else super().planned_copies(ensemble)

    def _new_lanes(self, ensemble: Ensemble) -> list[Lane]:
        if not self._gpus:
            return super()._new_lanes(ensemble)
        return [*gpu_lanes(ensemble, self._gpus, self._precision)]
