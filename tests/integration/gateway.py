"""Images, requests and expected logits for tests of a running `coserve serve`."""

import io
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
from PIL import Image

from tests.integration.conftest import COSERVE, Server


def encoded(colour: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, kind)
    return file.getvalue()


RED = encoded("red")
LIME = encoded("lime")
BLACK = encoded("black")


def classify(server: Server, *images: bytes, **query: Any) -> httpx.Response:
    files = [("files", (f"{index}.png", image)) for index, image in enumerate(images)]
    with server.http() as http:
        return http.post("/v1/classify", files=files, params=query)


def logits(reply: dict[str, Any], index: int) -> np.ndarray:
    predictions = reply["results"][index]["predictions"]
    return np.array([p["logit"] for p in sorted(predictions, key=lambda p: p["class_id"])])


def member_logits(
    folder: Path, name: str, colour: tuple[float, float, float], version: int = 1
) -> np.ndarray:
    batch = np.broadcast_to(np.array(colour, np.float32)[:, None, None], (1, 3, 8, 8))
    return np.stack(
        [
            ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": batch})[0][0]
            for path in sorted(folder.glob(f"{name}_member*/{version}/model.onnx"))
        ]
    )


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """Check that the response is a complete problem document, and return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == f"/problems/{kind}"
    assert document["status"] == status
    assert document["title"]
    assert document["instance"].startswith("urn:uuid:")
    assert "Traceback" not in document["detail"]
    return str(document["detail"])


def until_ready(server: Server, ready: bool = True) -> None:
    """Wait until `/readyz` reports that the server is ready, or not ready."""
    with server.http() as http:
        for _ in range(6000):
            if http.get("/readyz").is_success is ready:
                return
            time.sleep(0.01)
    raise AssertionError(f"{server.url} did not become {'' if ready else 'un'}ready")


def refused(*options: str | Path, **settings: object) -> str:
    """Return the line of error with which the command refuses to start."""
    ended = subprocess.run(
        [COSERVE, "serve", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {f"COSERVE_{name.upper()}": str(value) for name, value in settings.items()},
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    return line
