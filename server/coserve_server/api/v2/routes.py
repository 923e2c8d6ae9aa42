"""The `/v2` routes: the Open Inference Protocol, with Triton's extensions for binary tensors, classification,
model configuration, statistics and the repository's index.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from coserve_server.api.requests import parameters
from coserve_server.api.requests.bodies import read_body
from coserve_server.api.requests.dependencies import Core, classifier, find_model, request_record
from coserve_server.api.requests.disconnects import while_connected
from coserve_server.api.requests.quick_route import QuickRoute
from coserve_server.api.v2.compression import decompress
from coserve_server.api.v2.errors import RESPONSES, TAG
from coserve_server.api.v2.models import (
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    config,
    metadata,
)
from coserve_server.api.v2.requests import InferRequest, read_request
from coserve_server.api.v2.responses import write_response
from coserve_server.api.v2.statistics import StatisticsList, statistics
from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

HEADER_LENGTH = "Inference-Header-Content-Length"
# Smaller bodies are parsed on the event loop: going to a thread and back would take longer.
INLINE_JSON_BYTES = 2**16
INLINE_BINARY_BYTES = 2**20

# The handler reads the body itself, to limit it while it arrives, so FastAPI cannot derive this.
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": InferRequest.model_json_schema()},
        "application/octet-stream": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": f"The JSON, of the length in `{HEADER_LENGTH}`, then the tensor's bytes.",
            }
        },
    },
}


_HEADERS = {
    HEADER_LENGTH: "Bytes of JSON at the body's beginning; the rest is binary tensors.",
    "Content-Encoding": "gzip or deflate.",
}


async def _model(request: Request, name: str) -> Ensemble:
    return find_model(request, name, request.path_params.get("version"))


Model = Annotated[Ensemble, Depends(_model)]


async def _describe_version(version: str) -> None:
    """Has the path's version described in the API's documentation; `_model` reads it."""


router = APIRouter(prefix="/v2", tags=[TAG], responses=RESPONSES)


def _of_model(path: str, method: str = "GET", **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Register a route below a model, and below each of its versions."""

    def register(endpoint: Endpoint) -> Endpoint:
        whole = f"/models/{{name}}{path}"
        router.add_api_route(whole, endpoint, methods=[method], **options)
        described = {**options, "dependencies": [Depends(_describe_version)]}
        versioned = f"/models/{{name}}/versions/{{version}}{path}"
        router.add_api_route(versioned, endpoint, methods=[method], **described)
        return endpoint

    return register


@router.get("")
async def server_metadata() -> ServerMetadata:
    """Name the server, and the protocol's extensions that it knows."""
    return ServerMetadata()


@router.get("/health/live")
async def live() -> Live:
    """Whether the process lives."""
    return Live(live=True)


@router.get("/health/ready", responses={503: {"model": Ready}})
async def ready(core: Core, response: Response) -> Ready:
    """Whether every ensemble has its quorum of members."""
    if faults := core.catalogue.faults():
        response.status_code = 503
    return Ready(ready=not faults)


@router.get("/models/stats")
async def all_statistics(core: Core) -> StatisticsList:
    """Say what every model has done since the start."""
    counted = [statistics(model, core.statistics.of(model)) for model in core.catalogue.models()]
    return StatisticsList(model_stats=counted)


@_of_model("")
async def model_metadata(core: Core, model: Model) -> ModelMetadata:
    """Describe a model's tensors."""
    return metadata(model, [one.version for one in core.catalogue.versions(model.name)])


@_of_model("/ready", responses={503: {"model": ModelReady}})
async def model_ready(core: Core, model: Model, response: Response) -> ModelReady:
    """Whether a model has its quorum of members."""
    ready = core.catalogue.ready(model)
    response.status_code = 200 if ready else 503
    return ModelReady(name=model.name, ready=ready)


@_of_model("/config")
async def model_config(core: Core, model: Model) -> ModelConfig:
    """Describe a model as its configuration in Triton's model repository does."""
    return config(model, core.settings.max_images)


@_of_model("/stats")
async def model_statistics(core: Core, model: Model) -> StatisticsList:
    """Say what a model has done since the start."""
    return StatisticsList(model_stats=[statistics(model, core.statistics.of(model))])


@_of_model(
    "/infer",
    "POST",
    openapi_extra={"requestBody": _BODY, "parameters": parameters.documented(headers=_HEADERS)},
    response_class=Response,
)
async def infer(request: Request, name: str) -> Response:
    """Give the averaged logits of preprocessed images."""
    core = classifier(request)
    record = request_record(request)
    timeout_ns = parameters.timeout_ns(request)
    model = find_model(request, name, request.path_params.get("version"))
    header_length, encoding = (request.headers.get(header) for header in _HEADERS)
    with core.admitted(record):
        body = await read_body(request, core.settings)

        def read() -> tuple[InferRequest, Images]:
            plain = decompress(body, encoding, core.settings.max_body_bytes)
            return read_request(model, plain, header_length, core.settings.max_images)

        inline_bytes = INLINE_BINARY_BYTES if header_length else INLINE_JSON_BYTES
        quick = encoding is None and len(body) <= inline_bytes
        asked, images = read() if quick else await asyncio.to_thread(read)
        limits = [limit for limit in (timeout_ns, asked.parameters.timeout * 1000) if limit]
        answering = core.infer(record, model, images, min(limits, default=None))
        answer = await while_connected(request, answering)
    content, json_length = write_response(asked, answer)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")


async def _infer(request: Request) -> Response:
    return await infer(request, request.path_params["name"])


quick = [
    QuickRoute(f"/v2/models/{{name}}{version}/infer", _infer, methods=["POST"])
    for version in ("", "/versions/{version}")
]
