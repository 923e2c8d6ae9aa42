"""The `/v1` routes: classify images, list models."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from coserve_server import errors
from coserve_server.api.problems import KINDS, describe_responses
from coserve_server.api.requests import base64_images, parameters
from coserve_server.api.requests.answer_size import INLINE_PREDICTIONS, INLINE_VALUES, check_predictions
from coserve_server.api.requests.compression import CONTENT_ENCODING
from coserve_server.api.requests.dependencies import Core, find_model, get_classifier, get_record
from coserve_server.api.requests.disconnects import while_connected
from coserve_server.api.requests.hot_routes import HotRoute
from coserve_server.api.v1.images import FIELD, ClassifyRequest, read_images
from coserve_server.api.v1.replies import write_reply
from coserve_server.api.v1.schemas import ClassifyReply, Model, ModelList, describe_model
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.pipeline.prediction_sets import Method, SetRule, find_rule
from coserve_server.settings import EarlyStop

router = APIRouter(prefix="/v1", tags=["classification"])

# FastAPI cannot derive this, since the handler reads the body itself to limit it while it arrives.
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "additionalProperties": False,
                "properties": {
                    FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": ClassifyRequest.model_json_schema(),
            "example": {"images": [base64_images.EXAMPLE]},
        },
    },
}


_ADMIN_ERRORS = (errors.ForbiddenError, errors.NotEnabledError)


class ClassifyQuery(BaseModel, extra="forbid"):
    """Query parameters of `POST /v1/classify`."""

    model: str | None = Field(
        None, description="Ensemble to use; optional if there is a default or only one is served."
    )
    version: str | None = Field(None, description="Version of the ensemble; the newest if omitted.")
    top_k: int = Field(
        5,
        ge=1,
        description="Number of classes to return per image, at most all there are. The server limits the "
        "predictions in an answer: images times classes, with `member_predictions` the same for each member, "
        "and with `coverage` all classes of each image.",
    )
    member_predictions: bool = Field(
        False, description="Whether to return each member's own predictions too."
    )
    coverage: float | None = Field(
        None,
        description="Fraction of images whose prediction set is to hold the true class: one of the coverages "
        "in the model's provenance.calibration.prediction_sets. Adds the sets to the results.",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1, "examples": [0.95]},
    )
    set_method: Method | None = Field(
        None,
        description="How prediction sets are made. `lac`, the default, gives the smallest sets on average, "
        "which may be empty; sets of `raps` always hold the most probable class. Only with `coverage`.",
    )

    early_stop: EarlyStop | None = Field(
        None,
        description="When images need no further member once their answer is confident enough: `off` for "
        "never, `loaded` while images wait for the engine, or `always`; the server's setting if omitted.",
    )

    def find_rule(self, ensemble: Ensemble) -> SetRule | None:
        """Return the rule of the prediction sets; None if the request asks for none.

        Raises:
            InvalidParametersError: the ensemble is not calibrated for them, or the coverage is missing.
        """
        if self.coverage is not None:
            return find_rule(ensemble, self.coverage, self.set_method or "lac")
        if self.set_method is not None:
            raise errors.InvalidParametersError("set_method needs coverage, such as coverage=0.95")
        return None

    def count_rankings(self, ensemble: Ensemble) -> int:
        """Return how many times an answer ranks the classes of an image."""
        return 1 + len(ensemble.members) * self.member_predictions

    def count_predictions(self, ensemble: Ensemble) -> int:
        """Return how many predictions an answer may have per image."""
        classes = len(ensemble.labels)
        listed = self.count_rankings(ensemble) * min(self.top_k, classes)
        return listed + classes * (self.coverage is not None)


@router.post(
    "/classify",
    response_model=ClassifyReply,
    responses=describe_responses(*(error for error in KINDS if error not in _ADMIN_ERRORS)),
    openapi_extra={
        "requestBody": _BODY,
        "parameters": parameters.describe_parameters(ClassifyQuery, {"Content-Encoding": CONTENT_ENCODING}),
    },
)
async def classify(request: Request) -> Response:
    """Classify one or more images with the members of an ensemble.

    If an image cannot be decoded, none is classified, and the problem names that image.
    """
    core = get_classifier(request)
    record = get_record(request)
    query = parameters.parse_query(request, ClassifyQuery)
    timeout_ns = parameters.read_timeout_ns(request)
    with core.admitted(record):
        ensemble = find_model(request, query.model, query.version)
        rule = query.find_rule(ensemble)
        per_image = query.count_predictions(ensemble)
        # Before the body is read, in which there may be more images.
        check_predictions(core.settings, 1, per_image)
        images = await read_images(request, core.settings)
        predictions = check_predictions(core.settings, len(images), per_image)
        answering = core.classify(record, ensemble, images, timeout_ns, query.early_stop)
        answer = await while_connected(request, answering)

        def write() -> bytes:
            return write_reply(answer, images, query.top_k, query.member_predictions, rule)

        ranked = answer.combined.logits.size * query.count_rankings(ensemble)
        small = predictions <= INLINE_PREDICTIONS and ranked <= INLINE_VALUES
        reply = write() if small else await asyncio.to_thread(write)
    return Response(reply, media_type="application/json")


hot_routes = [HotRoute("/v1/classify", classify, methods=["POST"])]


@router.get("/models")
async def list_models(core: Core) -> ModelList:
    """List the served ensembles."""
    return ModelList(
        default=core.settings.default_model,
        models=[describe_model(core, ensemble) for ensemble in core.catalogue.ensembles.values()],
        not_served=dict(core.catalogue.not_served),
    )


@router.get(
    "/models/{name}",
    responses=describe_responses(
        errors.UnknownModelError, errors.InvalidParametersError, errors.NoQuorumError
    ),
)
async def get_model(
    request: Request, core: Core, name: str, version: str | SkipJsonSchema[None] = None
) -> Model:
    """Describe an ensemble, in its newest version or the one named."""
    return describe_model(core, find_model(request, name, version))
