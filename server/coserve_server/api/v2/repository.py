"""The `/v2/repository` routes: Triton's model repository extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

import asyncio
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, StrictBool

from coserve_server.api.requests.admin import require_admin
from coserve_server.api.requests.bodies import parse_json, read_body
from coserve_server.api.requests.dependencies import Core
from coserve_server.api.v2.errors import RESPONSES, TAG
from coserve_server.catalogue.control import RepositoryControl
from coserve_server.errors import InvalidParametersError, NotEnabledError, RepositoryError, UnknownModelError
from coserve_server.pipeline.classifier import Classifier

# Not nested in the other router: then `scope["route"].path`, which metrics use, would lack its prefix.
router = APIRouter(prefix="/v2/repository", tags=[TAG], responses=RESPONSES)

MAX_BODY_BYTES = 2**16
"""Small, since the number of these requests in progress is not limited."""

T = TypeVar("T", bound=BaseModel)


class IndexRequest(BaseModel):
    """The models to list."""

    ready: StrictBool = Field(False, description="Whether to list only models that are ready.")


class RepositoryModel(BaseModel):
    """A version of a model, and its state."""

    name: str
    version: str = Field(description="Empty if none is served.")
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(
        description="Why it cannot answer, or why the repository's newest files are not served; else empty."
    )


class ControlRequest(BaseModel):
    """Parameters of a load or unload. `unload_dependents` has no effect: members go with their ensemble."""

    parameters: dict[str, Any] = {}


async def _control(request: Request, core: Core) -> RepositoryControl:
    check_enabled(core)
    await require_admin(request)
    control: RepositoryControl = request.app.state.control
    return control


Control = Annotated[RepositoryControl, Depends(_control)]


@router.post("/index")
async def list_models(request: Request, core: Core) -> list[RepositoryModel]:
    """List the models that a request may name, those that could not be loaded, and those unloaded."""
    options = await _read(request, core, IndexRequest)
    return describe_repository(core, ready_only=options.ready)


@router.post("/models/{name}/load", response_class=Response)
async def load_model(request: Request, core: Core, control: Control, name: str) -> Response:
    """Load an ensemble from its files in the repository, and respond once it is served."""
    options = await _read(request, core, ControlRequest)
    await load(control, name, options.parameters)
    return Response()


@router.post("/models/{name}/unload", response_class=Response)
async def unload_model(request: Request, core: Core, control: Control, name: str) -> Response:
    """Stop serving an ensemble; requests in progress still get their answers."""
    options = await _read(request, core, ControlRequest)
    await unload(control, name, options.parameters)
    return Response()


def check_enabled(core: Classifier) -> None:
    """Check that this server loads and unloads models.

    Raises:
        NotEnabledError: it does not.
    """
    if core.settings.engine == "triton":
        raise NotEnabledError(
            "load and unload models in Triton itself; this server serves what Triton has loaded"
        )
    if not core.settings.repository_control:
        raise NotEnabledError("loading and unloading models is not enabled; set repository_control to true")


def describe_repository(core: Classifier, *, ready_only: bool) -> list[RepositoryModel]:
    """Return the models that a request may name, those that could not be loaded, and those unloaded."""
    served = [
        _describe(core, model.name, model.version, core.catalogue.fault(model))
        for model in core.catalogue.models()
    ]
    broken = [
        _describe(core, name, "", error)
        for name, error in core.catalogue.load_errors.items()
        if name not in core.catalogue.ensembles
    ]
    unloaded = [
        _describe(core, name, "", "unloaded")
        for name in core.catalogue.unloaded
        if name not in core.catalogue.ensembles
    ]
    return [model for model in (*served, *broken, *unloaded) if model.state == "READY" or not ready_only]


async def load(control: RepositoryControl, name: str, parameters: Collection[str]) -> None:
    """Load an ensemble from its files, and return once it is served; finish even if the caller is cancelled.

    Args:
        parameters: names of the request's parameters.

    Raises:
        InvalidParametersError: there are parameters, or the ensemble is missing or broken.
    """
    _check_parameters("load", name, parameters, "models are loaded as the repository has them")
    try:
        # Otherwise a client over gRPC whose deadline is shorter than a load would never get it done.
        await asyncio.shield(control.load(name))
    except (RepositoryError, UnknownModelError) as error:
        raise InvalidParametersError(f"failed to load {name!r}: {error}") from error


async def unload(control: RepositoryControl, name: str, parameters: Collection[str]) -> None:
    """Stop serving an ensemble; likewise.

    Args:
        parameters: names of the request's parameters.

    Raises:
        InvalidParametersError: there are unknown parameters, or the ensemble is not served.
    """
    _check_parameters("unload", name, parameters, "an ensemble is unloaded with its members")
    try:
        await asyncio.shield(control.unload(name))
    except UnknownModelError as error:
        raise InvalidParametersError(f"failed to unload {name!r}: {error}") from error


def _check_parameters(verb: str, name: str, parameters: Collection[str], rule: str) -> None:
    """Refuse parameters other than `unload_dependents`, which clients send with either call."""
    unknown = [parameter for parameter in parameters if parameter != "unload_dependents"]
    if unknown:
        raise InvalidParametersError(
            f"failed to {verb} {name!r}: parameters {', '.join(unknown[:5])} are not supported; {rule}"
        )


async def _read(request: Request, core: Classifier, kind: type[T]) -> T:
    """Read the JSON body, which clients may omit."""
    body = await read_body(request, core.settings, MAX_BODY_BYTES)
    return parse_json(kind, body or b"{}", max_values=0)


def _describe(core: Classifier, name: str, version: str, fault: str | None) -> RepositoryModel:
    reason = fault or core.catalogue.load_errors.get(name, "")
    return RepositoryModel(
        name=name, version=version, state="UNAVAILABLE" if fault else "READY", reason=reason
    )
