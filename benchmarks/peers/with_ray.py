"""Serve the ensemble with Ray Serve and its dynamic batching.

https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html
"""

import signal
import sys
from typing import Any

import numpy as np
import ray
from ensemble import BATCH_WAIT_S, MAX_BATCH_SIZE, Ensemble
from PIL import Image
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=2 * MAX_BATCH_SIZE)
class Classifier:
    """A single replica."""

    def __init__(self) -> None:
        self.ensemble = Ensemble()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S)
    async def predict(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self.ensemble.classify(np.stack([self.ensemble.prepare(image) for image in images]))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Handle a request."""
        form = await request.form()
        return await self.predict(Image.open(form["image"].file))


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind(), route_prefix="/classify")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()
