"""Serve the ensemble with BentoML and its adaptive batching.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
"""

from typing import Any

import bentoml
import numpy as np
from ensemble import MAX_BATCH_SIZE, Ensemble
from PIL.Image import Image as PILImage


@bentoml.service
class Classifier:
    """A service whose requests hold lists of files, which the dispatcher joins."""

    def __init__(self) -> None:
        self.ensemble = Ensemble()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=1000)
    def classify(self, image: list[PILImage]) -> list[dict[str, Any]]:
        """Classify images."""
        return self.ensemble.classify(np.stack([self.ensemble.prepare(one) for one in image]))
