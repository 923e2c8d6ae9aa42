"""Runs every member in this process: one ONNX Runtime session and, where cores allow, one thread each."""

from collections.abc import Mapping

from coserve_server.cores import Cores
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
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
    ) -> None:
        """Load and warm every member; see `EmbeddedEngine`."""
        super().__init__(load_member, ensembles, cores, threads, max_batch_size)


__all__ = ["Lane", "OnnxRuntimeEngine", "ThreadBudget", "create_session"]
