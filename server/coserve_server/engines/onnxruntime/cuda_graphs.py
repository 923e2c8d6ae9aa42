"""CUDA graphs: the kernels of one member and batch size, captured once and launched together.

Protocol: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs"
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble, Member

GRAPH_ID = "gpu_graph_id"
"""Run option that names the graph to capture or launch."""
NO_GRAPH = "-1"
"""Value of that option for an ordinary run."""

IDLE_S = 5
"""How long a capture waits for running work to end; everything else waits for it meanwhile."""


class CaptureLock:
    """Keeps other threads off CUDA while a graph is captured: any call of theirs may break the capture."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._using = 0
        self._capturing = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use CUDA beside other users, but not during a capture."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._using += 1
        try:
            yield
        finally:
            with self._changed:
                self._using -= 1
                self._changed.notify_all()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Use CUDA exclusively; later users wait.

        Raises:
            TimeoutError: running work does not end; the waiting users go on.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._using == 0, IDLE_S):
                    raise TimeoutError(f"work on the GPUs has not ended within {IDLE_S} s")
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


CAPTURES = CaptureLock()
"""The process's lock: CUDA captures per process, whatever engines and GPUs it has."""


class Graph:
    """One member's graph for one batch size, with the GPU buffers that it reads and writes."""

    def __init__(
        self,
        session: ort.InferenceSession,
        ensemble: Ensemble,
        member: Member,
        batch_size: int,
        device: tuple[str, int],
    ) -> None:
        """Capture the graph on the thread that will run it; ONNX Runtime's errors pass through.

        Args:
            device: ONNX Runtime's device type, and the GPU's number.
        """
        images = (batch_size, *ensemble.preprocessing.shape)
        logits = (batch_size, len(ensemble.labels))
        self._session = session
        self._id = str(batch_size)
        with CAPTURES.capturing():
            self._images = ort.OrtValue.ortvalue_from_shape_and_type(images, np.float32, *device)
            self._logits = ort.OrtValue.ortvalue_from_shape_and_type(logits, np.float32, *device)
            self._binding = session.io_binding()
            self._binding.bind_ortvalue_input(member.input_name, self._images)
            self._binding.bind_ortvalue_output(member.output_name, self._logits)
            # The first run is several: ONNX Runtime allocates memory, and then captures.
            self.run(np.zeros(images, np.float32), ort.RunOptions())

    def run(self, images: Images, options: ort.RunOptions) -> NDArray[np.float32]:
        """Copy the images to the graph's buffer, launch the graph, and return the logits."""
        options.add_run_config_entry(GRAPH_ID, self._id)
        self._images.update_inplace(np.ascontiguousarray(images))
        self._session.run_with_iobinding(self._binding, options)
        return np.array(self._logits.numpy())
