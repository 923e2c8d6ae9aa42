"""CUDA graphs: all kernels of one member and batch size, recorded once, then launched together.

Protocol: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs"
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Batch
from coserve_server.ensembles.ensemble import Ensemble, Member

GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"
"""The entry of a run's options that names its graph, and what it says of a run that is not to be one."""

IDLE_S = 5
"""How long a recording waits for what runs to end, and all else for it."""


class Recordings:
    """Lets nobody else use CUDA while a graph is recorded: another thread's call may make that fail."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._using, self._recording = 0, False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use CUDA, beside others who do; not while a graph is recorded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._using += 1
        try:
            yield
        finally:
            with self._changed:
                self._using -= 1
                self._changed.notify_all()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Use CUDA alone; whoever comes later waits.

        Raises:
            TimeoutError: a run does not end; the others go on.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._recording = True
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._using == 0, IDLE_S):
                    raise TimeoutError(f"what runs on the GPUs has not ended within {IDLE_S} s")
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()


RECORDINGS = Recordings()
"""Of this process: to CUDA it is one, however many engines and GPUs it has."""


class Graph:
    """One member's graph for one batch size, and the buffers on the GPU that it reads and writes."""

    def __init__(
        self,
        session: ort.InferenceSession,
        ensemble: Ensemble,
        member: Member,
        batch_size: int,
        device: tuple[str, int],
    ) -> None:
        """Record it, on the thread that will run it; whatever ONNX Runtime raises comes through.

        Args:
            device: ONNX Runtime's name of the kind, and the number.
        """
        images, logits = (batch_size, *ensemble.preprocessing.shape), (batch_size, len(ensemble.labels))
        self._session, self._id = session, str(batch_size)
        with RECORDINGS.recording():
            self._images, self._logits = (
                ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *device)
                for shape in (images, logits)
            )
            self._binding = session.io_binding()
            self._binding.bind_ortvalue_input(member.input_name, self._images)
            self._binding.bind_ortvalue_output(member.output_name, self._logits)
            # This first run is several: ONNX Runtime takes what memory it needs, and then records.
            self.run(np.zeros(images, np.float32), ort.RunOptions())

    def run(self, batch: Batch, options: ort.RunOptions) -> NDArray[np.float32]:
        """Copy the images to where the graph reads them, and launch it."""
        options.add_run_config_entry(GRAPH_ID, self._id)
        self._images.update_inplace(np.ascontiguousarray(batch))
        self._session.run_with_iobinding(self._binding, options)
        return np.array(self._logits.numpy())
