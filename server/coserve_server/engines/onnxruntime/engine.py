"""Runs each member as an ONNX Runtime session of this process, on cores or a GPU of its own."""

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
            SettingsError: this ONNX Runtime has no support for GPUs.
        """
        self._gpus = options.gpus
        load = GpuLoader(options.gpus, options.cuda_graphs) if options.gpus else load_member
        super().__init__(load, options, cores, ensembles)

    def describe(self, ensemble: Ensemble) -> str:
        """Return where the ensemble's members run."""
        if not self._gpus:
            return super().describe(ensemble)
        return f"at once, each on a stream of its own of GPU {', '.join(map(str, self._gpus))}"

    def _new_lanes(self, ensemble: Ensemble) -> list[Lane]:
        return gpu_lanes(ensemble, self._gpus) if self._gpus else super()._new_lanes(ensemble)
