"""Runs every member in this process: one ONNX Runtime session each, on cores or GPUs of its own."""

from collections.abc import Mapping

from coserve_server.cores import Cores
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.onnxruntime.gpus import GpuLoader, gpu_lanes
from coserve_server.engines.onnxruntime.sessions import create_session, load_member
from coserve_server.ensembles import Ensemble


class OnnxRuntimeEngine(EmbeddedEngine):
    """An embedded engine whose members are ONNX Runtime sessions."""

    def __init__(
        self,
        ensembles: Mapping[str, Ensemble],
        cores: Cores,
        threads: int | None = None,
        max_batch_size: int | None = None,
        gpus: tuple[int, ...] = (),
        cuda_graphs: tuple[int, ...] = (),
    ) -> None:
        """Load and warm every member; see `EmbeddedEngine`.

        Args:
            gpus: numbers of those that the members are placed on in turn; none: they run on the cores.
            cuda_graphs: sizes of the batches that members on GPUs run as CUDA graphs.

        Raises:
            SettingsError: this ONNX Runtime runs nothing on GPUs.
        """
        self._gpus = gpus
        load = GpuLoader(gpus, cuda_graphs) if gpus else load_member
        super().__init__(load, ensembles, cores, threads, max_batch_size)

    def describe(self, ensemble: Ensemble) -> str:
        """Where the ensemble's members run."""
        if not self._gpus:
            return super().describe(ensemble)
        return f"at once, on streams of their own of GPU {', '.join(map(str, self._gpus))}"

    def _new_lanes(self, ensemble: Ensemble) -> list[Lane]:
        return gpu_lanes(ensemble, self._gpus) if self._gpus else super()._new_lanes(ensemble)


__all__ = ["Lane", "OnnxRuntimeEngine", "ThreadBudget", "create_session"]
