"""Serve the ensemble with LitServe and its batching.

https://lightning.ai/docs/litserve/features/batching
"""

import sys
from typing import Any

import litserve
import numpy as np
from ensemble import BATCH_WAIT_S, MAX_BATCH_SIZE, Ensemble
from PIL import Image
from starlette.requests import Request


class Classifier(litserve.LitAPI):
    """Decodes, batches and predicts in a worker process."""

    def setup(self, device: str) -> None:
        """Load the members."""
        self.ensemble = Ensemble()

    def decode_request(self, request: Request) -> np.ndarray:
        """Decode the uploaded file to a tensor."""
        return self.ensemble.prepare(Image.open(request["image"].file))

    def predict(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """Classify a batch; LitServe stacks and unstacks it."""
        return self.ensemble.classify(batch)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer unchanged."""
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_WAIT_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
