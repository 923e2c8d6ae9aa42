"""Serve the ensemble with Mosec and its dynamic batching; requests are the files themselves.

https://mosecorg.github.io/mosec/examples/pytorch.html
"""

import io
from typing import Any

import numpy as np
from ensemble import BATCH_WAIT_S, MAX_BATCH_SIZE, Ensemble
from mosec import Server, Worker
from PIL import Image


class Classifier(Worker):
    """Decodes, batches and predicts in a worker process."""

    def __init__(self) -> None:
        self.ensemble = Ensemble()

    def deserialize(self, data: bytes) -> np.ndarray:
        """Decode the body to a tensor."""
        return self.ensemble.prepare(Image.open(io.BytesIO(data)))

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self.ensemble.classify(np.stack(data))


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classifier,
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_time=round(BATCH_WAIT_S * 1000),
        timeout=30,
        route="/classify",
    )
    server.run()
