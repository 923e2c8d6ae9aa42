"""What the routes of every API need: the classifier, the request's record, the model that it names."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.pipeline.classifier import Classifier


def get_classifier(request: Request) -> Classifier:
    """Return the application's classifier."""
    classifier: Classifier = request.app.state.classifier
    return classifier


def get_record(request: Request) -> Record:
    """Return the request's record, which the outermost middleware has put into its scope."""
    record: Record = request.scope["state"]["record"]
    return record


def route_path(scope: Scope) -> str:
    """Return the path below the application's prefix, as the router does; a proxy may have removed it."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if not below or below.startswith("/") else path


def find_model(request: Request, name: str | None, version: str | None) -> Ensemble:
    """Return the model that a request names, and note it in the request's record.

    Raises:
        UnknownModelError, InvalidParametersError, NoQuorumError: see `Catalogue.ensemble`.
    """
    model = get_classifier(request).catalogue.ensemble(name, version)
    get_record(request).ensemble = model
    return model


# FastAPI calls dependencies that are not asynchronous on a thread.
async def _classifier(request: Request) -> Classifier:
    return get_classifier(request)


Core = Annotated[Classifier, Depends(_classifier)]
