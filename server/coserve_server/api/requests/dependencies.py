"""What the routes of every API take from a request: the core, the record, the model."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.pipeline.classifier import Classifier


def classifier(request: Request) -> Classifier:
    """Return the application's classifier."""
    core: Classifier = request.app.state.classifier
    return core


def request_record(request: Request) -> Record:
    """Return the request's record, which the outermost middleware has put into its scope."""
    record: Record = request.scope["state"]["record"]
    return record


def route_path(scope: Scope) -> str:
    """Return the path below the prefix that the application is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def find_model(request: Request, name: str | None, version: str | None) -> Ensemble:
    """Return the model that a request names, and note it in the request's record.

    Raises:
        UnknownModelError, InvalidParametersError, NoQuorumError: see `Catalogue.ensemble`.
    """
    model = classifier(request).catalogue.ensemble(name, version)
    request_record(request).ensemble = model
    return model


# Asynchronous: FastAPI calls other dependencies on a thread.
async def _classifier(request: Request) -> Classifier:
    return classifier(request)


Core = Annotated[Classifier, Depends(_classifier)]

TIMEOUT = "Request-Timeout-Ms"
TIMEOUT_DESCRIPTION = (
    "Limit on the answer's time in milliseconds, counted from the complete body; the server's deadline "
    "applies if it is shorter."
)
