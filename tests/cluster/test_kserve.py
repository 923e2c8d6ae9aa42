"""The manifests for KServe: its own schemas, and the command they run on what its initializer copies."""

import copy
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from coserve_server.settings import Settings
from tests.cluster.chart import ROOT
from tests.integration.conftest import Serve, Server, serve
from tests.server.onnx_repository import write_repository

__all__ = ["serve"]

FOLDER = ROOT / "deploy/kserve"
SCHEMAS = {"servingruntime": "servingruntimes", "inferenceservice": "inferenceservices"}
MODELS = "/mnt/models"
"""Where KServe's storage initializer copies to."""


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())  # type: ignore[no-any-return]


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Return a validator of a kind that also refuses unknown fields, which an API server would drop."""
    packed = (Path(__file__).parent / f"kserve/{SCHEMAS[name]}.json.gz").read_bytes()
    return jsonschema.Draft202012Validator(close(json.loads(gzip.decompress(packed))))


def close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [close(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    # The metadata's fields are Kubernetes' own.
    if "metadata" in closed.get("properties", {}) and "kind" in closed["properties"]:
        closed["properties"]["metadata"] = {"type": "object"}
    return closed


@pytest.mark.parametrize("name", SCHEMAS)
def test_kserve_accepts_the_manifest(name: str) -> None:
    assert [error.message for error in validator(name).iter_errors(manifest(name))] == []


def test_a_misspelt_field_would_be_noticed() -> None:
    runtime = copy.deepcopy(manifest("servingruntime"))
    runtime["spec"]["containers"][0]["readynessProbe"] = {}
    service = copy.deepcopy(manifest("inferenceservice"))
    service["spec"]["predictor"]["model"]["storageUrl"] = ""
    for name, broken in zip(SCHEMAS, (runtime, service), strict=True):
        (error,) = validator(name).iter_errors(broken)
        assert "readynessProbe" in error.message or "storageUrl" in error.message


def test_the_service_asks_for_what_the_runtime_offers() -> None:
    runtime = manifest("servingruntime")
    model = manifest("inferenceservice")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_the_grace_period_covers_drain_deadline_and_exit() -> None:
    (container,) = manifest("servingruntime")["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    grace = manifest("inferenceservice")["spec"]["predictor"]["terminationGracePeriodSeconds"]
    deadline = Settings.model_fields["deadline_ms"].default
    assert grace > (float(variables["COSERVE_DRAIN_DELAY_MS"]) + deadline) / 1000 + 2 + 2


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    (found,) = manifest("servingruntime")["spec"]["containers"]
    return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def server(serve: Serve, container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Run the container's command; only the folder and the port are others."""
    models = write_repository(tmp_path_factory.mktemp("mnt") / "models", "photos")
    arguments = container["args"]
    assert arguments[:3] == ["serve", "--repository", MODELS]
    assert arguments[3:] == ["--port", str(container["ports"][0]["containerPort"])]
    settings = {one["name"].removeprefix("COSERVE_").lower(): one["value"] for one in container["env"]}
    return serve(models, **settings | {"drain_delay_ms": 0})


def test_the_probes_ask_for_paths_that_the_server_has(server: Server, container: dict[str, Any]) -> None:
    probes = [container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    with server.http() as http:
        assert {http.get(probe["path"]).status_code for probe in probes} == {200}
    assert {probe["port"] for probe in probes} == {container["ports"][0]["containerPort"]}


def test_a_client_of_the_open_inference_protocol_uses_the_service_s_name(server: Server) -> None:
    name = manifest("inferenceservice")["metadata"]["name"]
    tensor = np.zeros((1, 3, 8, 8), np.float32)
    values = {"name": "images", "shape": tensor.shape, "datatype": "FP32", "data": tensor.ravel().tolist()}
    with server.http() as http:
        assert http.get(f"/v2/models/{name}/ready").is_success
        (output,) = http.post(f"/v2/models/{name}/infer", json={"inputs": [values]}).json()["outputs"]
        assert "coserve_" in http.get("/metrics").text
    assert output["shape"] == [1, 4]
