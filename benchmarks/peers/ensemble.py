"""The ensemble that every peer serves: preprocessing, members in ONNX Runtime, and their mean.

Needs only NumPy, Pillow and ONNX Runtime, because each peer has its own environment. `compare.py` writes the
description that this module reads.
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
"""How long LitServe and Ray Serve wait for a batch to fill. A batch fills while the previous one runs anyway,
and a lone request waits in vain: Ray Serve's default of 10 ms is three times an inference. With LitServe's
default of 0, polling for requests keeps a core busy."""


class Ensemble:
    """Members that run concurrently, each on its own thread, with Coserve's session options."""

    def __init__(self) -> None:
        """Load the ensemble that the file named by `ENSEMBLE` describes, and run it once."""
        self.description: dict[str, Any] = json.loads(Path(os.environ["ENSEMBLE"]).read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.description["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.sessions = [
            ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            for file in self.description["files"]
        ]
        self.weights = np.array(self.description["weights"]) / np.sum(self.description["weights"])
        self.threads = ThreadPoolExecutor(self.description["at_once"])
        preprocessing = self.description["preprocessing"]
        self.classify(np.zeros((1, 3, preprocessing["height"], preprocessing["width"]), np.float32))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Preprocess an image to FP32 `[3, H, W]`: resize, crop the centre, normalise."""
        options = self.description["preprocessing"]
        image = image.convert("RGB")
        if options["resize_size"] is None:
            size = (options["width"], options["height"])
        else:
            scale = options["resize_size"] / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
        if size != image.size:
            image = image.resize(size, Image.Resampling[options["interpolation"].upper()])
        left = round((image.width - options["width"]) / 2)
        top = round((image.height - options["height"]) / 2)
        image = image.crop((left, top, left + options["width"], top + options["height"]))
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - np.array(options["mean"], np.float32)) / np.array(options["std"], np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def classify(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """Classify images, FP32 `[N, 3, H, W]`, and return the most probable classes of each."""
        runs = list(self.threads.map(lambda session: _run(session, batch), self.sessions))
        logits = np.einsum("s,snc->nc", self.weights, np.stack(runs).astype(np.float64))
        exponentials = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.description["temperature"])
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [self._answer(*one) for one in zip(logits, probabilities, strict=True)]

    def _answer(self, logits: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
        best = np.argsort(-probabilities)[:TOP_K]
        return {
            "predictions": [
                {
                    "label": self.description["labels"][index],
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
