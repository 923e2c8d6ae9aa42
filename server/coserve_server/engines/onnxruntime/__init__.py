"""Runs every member in this process: one ONNX Runtime session each, on cores or GPUs of its own."""

from collections.abc import Mapping

from coserve_server.engines.base import Batch
from coserve_server.engines.embedded.choice import Choice
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.onnxruntime.gpus import GpuLoader, gpu_lanes
from coserve_server.engines.onnxruntime.sessions import load_member
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.machine.cores import Cores


class OnnxRuntimeEngine(EmbeddedEngine):
    """An embedded engine whose members are ONNX Runtime sessions."""

    def __init__(self, choice: Choice, cores: Cores, ensembles: Mapping[str, Ensemble]) -> None:
        """Load and warm every member; see `EmbeddedEngine`.

        Raises:
            SettingsError: this ONNX Runtime runs nothing on GPUs, or what pins memory is not installed.
        """
        self._gpus, self._pinned = choice.gpus, None
        if choice.pinned_host_memory:
            from coserve_server.engines.onnxruntime.pinned_memory import PinnedMemory

            self._pinned = PinnedMemory()
        load = GpuLoader(choice.gpus, choice.cuda_graphs, self._pinned) if choice.gpus else load_member
        super().__init__(load, choice, cores, ensembles)

    def describe(self, ensemble: Ensemble) -> str:
        """Where the ensemble's members run."""
        if not self._gpus:
            return super().describe(ensemble)
        return f"at once, on streams of their own of GPU {', '.join(map(str, self._gpus))}"

    def allocate(self, shape: tuple[int, ...]) -> Batch:
        """Pinned memory, where it is wanted and free."""
        pinned = None if self._pinned is None else self._pinned.batch(shape)
        return super().allocate(shape) if pinned is None else pinned

    def _new_lanes(self, ensemble: Ensemble) -> list[Lane]:
        return gpu_lanes(ensemble, self._gpus) if self._gpus else super()._new_lanes(ensemble)
