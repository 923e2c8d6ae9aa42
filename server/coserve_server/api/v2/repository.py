"""The `/v2/repository` routes: Triton's model repository extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from coserve_server.api.requests.admin import require_admin
from coserve_server.api.requests.bodies import parse_json, read_body
from coserve_server.api.requests.dependencies import Core
from coserve_server.api.v2.errors import RESPONSES, TAG, error_response
from coserve_server.catalogue.reload import Reloader
from coserve_server.errors import InvalidParametersError, RepositoryError, UnknownModelError
from coserve_server.pipeline.classifier import Classifier

# Whole, since a router within another one would tell the routes' paths without the outer's prefix.
router = APIRouter(prefix="/v2/repository", tags=[TAG], responses=RESPONSES)

MAX_BODY_BYTES = 2**16
"""These requests are small, and any number of them may be in progress."""

T = TypeVar("T", bound=BaseModel)


class IndexRequest(BaseModel):
    """Which models to list."""

    ready: bool = False


class RepositoryModel(BaseModel):
    """A model, and whether it can answer."""

    name: str
    version: str = Field(description="Empty where none is served.")
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(
        description="Why it cannot answer, or why what the repository has now is not served; or empty."
    )


class ControlRequest(BaseModel):
    """How to load or unload; `unload_dependents` says nothing new: members go with their ensemble."""

    parameters: dict[str, Any] = {}


async def _reloader(request: Request, core: Core) -> Reloader:
    """What loads and unloads.

    Raises:
        HTTPException: this server does not.
        ForbiddenError: the client may not.
    """
    if core.settings.engine == "triton":
        raise HTTPException(501, "load and unload models in Triton itself; what it has loaded is served")
    if not core.settings.repository_control:
        raise HTTPException(
            501, "loading and unloading models is not enabled; start the server with repository_control"
        )
    await require_admin(request)
    reloader: Reloader = request.app.state.reloader
    return reloader


Control = Annotated[Reloader, Depends(_reloader)]


@router.post("/index")
async def index(request: Request, core: Core) -> list[RepositoryModel]:
    """List the models that a request may name, and those that could not be loaded."""
    asked = await _read(request, core, IndexRequest)
    served = [
        _listed(core, model.name, model.version, core.catalogue.fault(model))
        for model in core.catalogue.models()
    ]
    broken = [
        _listed(core, name, "", error)
        for name, error in core.catalogue.load_errors.items()
        if name not in core.catalogue.ensembles
    ]
    return [model for model in (*served, *broken) if model.state == "READY" or not asked.ready]


@router.post("/models/{name}/load", response_class=Response)
async def load(request: Request, core: Core, reloader: Control, name: str) -> Response:
    """Serve an ensemble as its files in the repository are now; answered once that is so."""
    asked = await _read(request, core, ControlRequest)
    if asked.parameters:
        raise InvalidParametersError(
            f"parameters {', '.join(asked.parameters)}: models are loaded as the repository has them"
        )
    try:
        await reloader.load(name)
    except (RepositoryError, UnknownModelError) as error:
        return error_response(400, f"failed to load {name!r}: {error}")
    return Response()


@router.post("/models/{name}/unload", response_class=Response)
async def unload(request: Request, core: Core, reloader: Control, name: str) -> Response:
    """Serve an ensemble no more; requests in progress still get their answers."""
    await _read(request, core, ControlRequest)
    try:
        await reloader.unload(name)
    except UnknownModelError as error:
        return error_response(400, f"failed to unload {name!r}: {error}")
    return Response()


async def _read(request: Request, core: Classifier, kind: type[T]) -> T:
    """A body's JSON; clients may leave it out."""
    body = await read_body(request, core.settings, MAX_BODY_BYTES)
    return parse_json(kind, body or b"{}", max_values=0)


def _listed(core: Classifier, name: str, version: str, fault: str | None) -> RepositoryModel:
    reason = fault or core.catalogue.load_errors.get(name, "")
    return RepositoryModel(
        name=name, version=version, state="UNAVAILABLE" if fault else "READY", reason=reason
    )
