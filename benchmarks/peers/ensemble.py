"""What every peer serves: an ensemble's members in ONNX Runtime, and what comes before and after them.

Needs NumPy, Pillow and ONNX Runtime alone, since each peer has an environment of its own. `compare.py` writes
the description that this reads.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

TOP_K = 5
MAX_BATCH_SIZE = 32
BATCH_WAIT_S = 0.001
"""How long LitServe and Ray Serve wait for a batch to fill. They fill while one runs anyway, and a lone
request waits in vain: Ray Serve's default of 10 ms is three times an inference. LitServe's default of none
keeps a core busy with looking for requests."""


class Ensemble:
    """Members that run at once, each on its own thread with the sessions' options that Coserve uses."""

    def __init__(self) -> None:
        """Load what the file named by the variable `ENSEMBLE` describes, and run it once."""
        self.about: dict[str, Any] = json.loads(Path(os.environ["ENSEMBLE"]).read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.about["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.sessions = [
            ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            for file in self.about["files"]
        ]
        self.weights = np.array(self.about["weights"]) / np.sum(self.about["weights"])
        self.threads = ThreadPoolExecutor(self.about["at_once"])
        how = self.about["preprocessing"]
        self.classify(np.zeros((1, 3, how["height"], how["width"]), np.float32))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image as FP32 `[3, H, W]`: resized, cropped from the middle, normalised."""
        how = self.about["preprocessing"]
        image = image.convert("RGB")
        if how["resize_size"] is None:
            size = (how["width"], how["height"])
        else:
            scale = how["resize_size"] / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
        if size != image.size:
            image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
        left, top = round((image.width - how["width"]) / 2), round((image.height - how["height"]) / 2)
        image = image.crop((left, top, left + how["width"], top + how["height"]))
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - np.array(how["mean"], np.float32)) / np.array(how["std"], np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def classify(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """The answers to images FP32 `[N, 3, H, W]`: the most probable classes of each."""
        runs = list(self.threads.map(lambda session: _run(session, batch), self.sessions))
        logits = np.einsum("s,snc->nc", self.weights, np.stack(runs).astype(np.float64))
        exponentials = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.about["temperature"])
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [self._answer(*one) for one in zip(logits, probabilities, strict=True)]

    def _answer(self, logits: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
        best = np.argsort(-probabilities)[:TOP_K]
        return {
            "predictions": [
                {
                    "label": self.about["labels"][index],
                    "class_id": int(index),
                    "probability": float(probabilities[index]),
                    "logit": float(logits[index]),
                }
                for index in best
            ]
        }


def _run(session: ort.InferenceSession, batch: np.ndarray) -> np.ndarray:
    (logits,) = session.run(None, {session.get_inputs()[0].name: batch})
    return logits
