"""The `/v1` routes: classify images, list models."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from coserve_server import errors
from coserve_server.api.problems import KINDS, responses
from coserve_server.api.requests import parameters
from coserve_server.api.requests.dependencies import Core, classifier, find_model, request_record
from coserve_server.api.requests.disconnects import while_connected
from coserve_server.api.requests.quick_route import QuickRoute
from coserve_server.api.v1.images import FIELD, ClassifyRequest, read_images
from coserve_server.api.v1.schemas import (
    ClassifyReply,
    Model,
    ModelList,
    classify_reply,
    model,
)

router = APIRouter(prefix="/v1", tags=["classification"])

# The handler reads the body itself, to limit it while it arrives, so FastAPI cannot derive this.
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {
                    FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {"schema": ClassifyRequest.model_json_schema()},
    },
}


class ClassifyQuery(BaseModel, extra="forbid"):
    """The query of `POST /v1/classify`."""

    model: str | None = Field(None, description="Ensemble to ask; may be left out where one is served.")
    version: str | None = Field(None, description="Version of it; the newest where left out.")
    top_k: int = Field(5, ge=1, description="Classes to name per image, at most all there are.")
    member_predictions: bool = Field(False, description="Whether to add each member's own predictions.")


@router.post(
    "/classify",
    response_model=ClassifyReply,
    responses=responses(*(kind for error, kind in KINDS.items() if error is not errors.ForbiddenError)),
    openapi_extra={"requestBody": _BODY, "parameters": parameters.documented(ClassifyQuery)},
)
async def classify(request: Request) -> Response:
    """Classify one or more images with all members of an ensemble.

    If one image cannot be decoded, none is classified and the problem names it.
    """
    core = classifier(request)
    record = request_record(request)
    query = parameters.query(request, ClassifyQuery)
    timeout_ns = parameters.timeout_ns(request)
    with core.admitted(record):
        ensemble = find_model(request, query.model, query.version)
        images = await read_images(request, core.settings)
        answer = await while_connected(request, core.classify(record, ensemble, images, timeout_ns))
        reply = classify_reply(answer, images, query.top_k, query.member_predictions)
    return Response(reply.model_dump_json(), media_type="application/json")


quick = [QuickRoute("/v1/classify", classify, methods=["POST"])]


@router.get("/models")
async def models(core: Core) -> ModelList:
    """List the ensembles that are served."""
    return ModelList(
        default=core.settings.default_model,
        models=[model(core, ensemble) for ensemble in core.catalogue.ensembles.values()],
        not_served={
            name: error
            for name, error in core.catalogue.load_errors.items()
            if name not in core.catalogue.ensembles
        },
    )


@router.get(
    "/models/{name}",
    responses=responses(
        *(
            KINDS[error]
            for error in (errors.UnknownModelError, errors.InvalidParametersError, errors.NoQuorumError)
        )
    ),
)
async def one_model(request: Request, core: Core, name: str, version: str | None = None) -> Model:
    """Describe one ensemble, in its newest version or the one named."""
    return model(core, find_model(request, name, version))
