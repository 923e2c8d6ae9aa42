"""Capturing CUDA graphs: the kernels of one member and batch size, launched together from then on.

Protocol: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs"
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRAPH_ID = "gpu_graph_id"
"""Run option that names the graph to capture or launch."""

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
