"""The metrics that the gateway and Triton really export."""

import re
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import Serve, StartTriton, serve, triton
from tests.integration.gateway import RED
from tests.server.onnx_repository import write_repository

__all__ = ["serve", "triton"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, serve: Serve, triton: StartTriton) -> set[str]:
    """Return the names of the metrics and samples at both `/metrics`, after an answer and a refusal."""
    repository: Path = write_repository(tmp_path_factory.mktemp("exported") / "repository")
    server = triton(repository)
    gateway = serve(None, triton_url=server.grpc)
    with gateway.http() as http:
        png = {"Content-Type": "image/png"}
        assert http.post("/v1/classify", content=RED, headers=png).status_code == 200
        assert http.post("/v1/classify", content=b"", headers=png).status_code == 400
        texts = [http.get("/metrics").text, httpx.get(f"http://{server.metrics}/metrics").text]
    return {name for text in texts for name in re.findall(r"^(?:# TYPE )?(\w+)[{ ]", text, re.MULTILINE)}
