"""The `/v2` routes: the Open Inference Protocol, with Triton's extensions for binary tensors, classification,
model configuration, statistics and the repository's index.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from coserve_server.api.requests import base64_images, parameters
from coserve_server.api.requests.bodies import read_body
from coserve_server.api.requests.compression import CONTENT_ENCODING
from coserve_server.api.requests.dependencies import Core, find_model, get_classifier, get_record
from coserve_server.api.requests.disconnects import while_connected
from coserve_server.api.requests.hot_routes import HotRoute
from coserve_server.api.v2.errors import RESPONSES, TAG
from coserve_server.api.v2.models import (
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    describe_config,
    describe_tensors,
)
from coserve_server.api.v2.requests import check_query, read_request
from coserve_server.api.v2.responses import respond, write_response
from coserve_server.api.v2.schemas import InferRequest
from coserve_server.api.v2.statistics import StatisticsList, describe_statistics
from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.observability.statistics import Statistics
from coserve_server.observability.totals import Totals
from coserve_server.pipeline.classifier import Classification, Classifier
from coserve_server.pipeline.preparation import EncodedImage

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

HEADER_LENGTH = "Inference-Header-Content-Length"
# Smaller bodies are parsed on the event loop: going to a thread and back would take longer.
INLINE_JSON_BYTES = 2**16
INLINE_BINARY_BYTES = 2**20

# FastAPI cannot derive this, since the handler reads the body itself to limit it while it arrives.
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": InferRequest.model_json_schema(),
            "example": {
                "inputs": [
                    {"name": "images", "shape": [1], "datatype": "BYTES", "data": [base64_images.EXAMPLE]}
                ]
            },
        },
        "application/octet-stream": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": f"JSON of the length in `{HEADER_LENGTH}`, then the tensor's bytes.",
            }
        },
    },
}

_HEADERS = {
    HEADER_LENGTH: {
        "pattern": "^[0-9]+$",
        "description": "Length in bytes of the JSON at the start of the body; binary tensors follow it.",
    },
    "Content-Encoding": CONTENT_ENCODING,
}


async def _find_model(request: Request) -> Ensemble:
    """Return the model, and the version of it, that the path names."""
    return find_model(request, request.path_params["name"], request.path_params.get("version"))


Model = Annotated[Ensemble, Depends(_find_model)]


async def _document_name(name: str) -> None:
    """Make FastAPI document this parameter of the path."""


async def _document_version(name: str, version: str) -> None:
    """Make FastAPI document these parameters of the path."""


router = APIRouter(prefix="/v2", tags=[TAG], responses=RESPONSES)


def _model_route(path: str, method: str = "GET", **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Register a route below a model, and the same below its versions."""

    def register(endpoint: Endpoint) -> Endpoint:
        for parent, document in (
            ("/models/{name}", _document_name),
            ("/models/{name}/versions/{version}", _document_version),
        ):
            router.add_api_route(
                f"{parent}{path}", endpoint, methods=[method], dependencies=[Depends(document)], **options
            )
        return endpoint

    return register


@router.get("")
async def get_server_metadata() -> ServerMetadata:
    """Describe the server and the protocol extensions that it supports."""
    return ServerMetadata()


@router.get("/health/live")
async def check_liveness() -> Live:
    """Report whether the process is alive."""
    return Live(live=True)


@router.get("/health/ready", responses={503: {"model": Ready}})
async def check_readiness(core: Core, response: Response) -> Ready:
    """Report whether every ensemble has its quorum of members."""
    if faults := core.catalogue.faults():
        response.status_code = 503
    return Ready(ready=not faults)


@router.get("/models/stats")
async def list_statistics(request: Request, core: Core) -> StatisticsList:
    """Report the counters of all models since the start."""
    totals = await _count(request)
    return StatisticsList(
        model_stats=[describe_statistics(model, totals.get(model)) for model in core.catalogue.models()]
    )


@_model_route("")
async def get_model_metadata(core: Core, model: Model) -> ModelMetadata:
    """Describe a model's versions and tensors."""
    versions = [one.version for one in core.catalogue.versions(model.name)]
    return describe_tensors(model, versions, announce_files=core.settings.announce_files)


@_model_route("/ready", responses={503: {"model": ModelReady}})
async def check_model_readiness(core: Core, model: Model, response: Response) -> ModelReady:
    """Report whether a model has its quorum of members."""
    ready = core.catalogue.ready(model)
    response.status_code = 200 if ready else 503
    return ModelReady(name=model.name, ready=ready)


@_model_route("/config")
async def get_model_config(core: Core, model: Model) -> ModelConfig:
    """Return a model's configuration, as Triton would."""
    return describe_config(model, core.settings.max_images, announce_files=core.settings.announce_files)


@_model_route("/stats")
async def get_model_statistics(request: Request, model: Model) -> StatisticsList:
    """Report a model's counters since the start."""
    totals = await _count(request)
    return StatisticsList(model_stats=[describe_statistics(model, totals.get(model))])


@_model_route(
    "/infer",
    "POST",
    openapi_extra={"requestBody": _BODY, "parameters": parameters.describe_parameters(headers=_HEADERS)},
    response_class=Response,
)
async def infer(request: Request) -> Response:
    """Return the averaged logits of preprocessed images."""
    core = get_classifier(request)
    record = get_record(request)
    timeout_ns = parameters.read_timeout_ns(request)
    if request.scope["query_string"]:
        check_query(request.query_params.keys())
    model = await _find_model(request)
    header_length = request.headers.get(HEADER_LENGTH)
    with core.admitted(record):
        body = await read_body(request, core.settings)

        def read() -> tuple[InferRequest, Images | list[EncodedImage]]:
            return read_request(model, body, header_length, core.settings)

        inline_bytes = INLINE_BINARY_BYTES if header_length else INLINE_JSON_BYTES
        wanted, images = read() if len(body) <= inline_bytes else await asyncio.to_thread(read)
        timeouts = [limit for limit in (timeout_ns, wanted.parameters.timeout * 1000) if limit]
        answering = answer_images(core, record, model, images, min(timeouts, default=None), wanted)
        answer = await while_connected(request, answering)
        content, json_length = await respond(write_response, wanted, answer)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")


async def _count(request: Request) -> Statistics:
    """Return the counters of the whole server."""
    totals: Totals = request.app.state.totals
    return await totals.statistics()


async def answer_images(
    core: Classifier,
    record: Record,
    model: Ensemble,
    images: Images | list[EncodedImage],
    timeout_ns: int | None,
    wanted: InferRequest,
) -> Classification:
    """Answer with tensors as they are, or with encoded images once they are decoded and preprocessed.

    Raises:
        RequestError: see `Classifier.classify` and `Classifier.infer`.
    """
    early_stop = wanted.parameters.early_stop
    if isinstance(images, list):
        return await core.classify(record, model, images, timeout_ns, early_stop)
    return await core.infer(record, model, images, timeout_ns, early_stop)


hot_routes = [
    HotRoute(f"/v2/models/{{name}}{version}/infer", infer, methods=["POST"])
    for version in ("", "/versions/{version}")
]
