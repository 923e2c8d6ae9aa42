"""The application without a socket, and requests of the Open Inference Protocol."""

import asyncio
import json
from typing import Any

import httpx
import numpy as np

from coserve_server.api.app import build_app
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.fake_engine import FakeEngine

INFER = "/v2/models/pair/infer"
LENGTH = "Inference-Header-Content-Length"
IMAGES = np.arange(3 * 3 * 4 * 4, dtype=np.float32).reshape(3, 3, 4, 4)
"""Three images for the fake ensemble; all values differ."""
LOGITS = IMAGES[:, [0, -1], [0, -1], [0, -1]] + np.float32(0.5)
"""The mean logits of a `ReadingEngine` with two members."""


def document(images: np.ndarray = IMAGES, *, binary: bool = True, **request: Any) -> dict[str, Any]:
    """Return the JSON of a request with these images; other keywords become keys of the request."""
    tensor: dict[str, Any] = {"name": "images", "shape": list(images.shape), "datatype": "FP32"}
    if binary:
        tensor["parameters"] = {"binary_data_size": images.nbytes}
    else:
        tensor["data"] = images.ravel().tolist()
    return {"inputs": [tensor]} | request


def binary(images: np.ndarray = IMAGES, **request: Any) -> dict[str, Any]:
    """Return httpx's arguments for a request whose input and output are binary tensors."""
    request.setdefault("parameters", {"binary_data_output": True})
    head = json.dumps(document(images, **request)).encode()
    return {"content": head + images.tobytes(), "headers": {LENGTH: str(len(head))}}


def ask_app(app: Any, method: str, path: str, **arguments: Any) -> httpx.Response:
    """Send one request to an ASGI application."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, **arguments)

    return asyncio.run(go())


class Server:
    """The application, without a socket."""

    def __init__(self, engine: FakeEngine, **changes: Any) -> None:
        self.engine = engine
        self.core = Classifier(engine, load_settings(repository="unused", **changes), cores=1)
        self.app = build_app(self.core)

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return ask_app(self.app, method, path, **arguments)

    def get(self, path: str) -> Any:
        response = self.ask("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    def infer(self, path: str = INFER, **arguments: Any) -> httpx.Response:
        response = self.ask("POST", path, **arguments)
        assert response.status_code == 200, response.text
        return response


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"error"}
    return str(response.json()["error"])
