"""The ASGI application: the routes and middlewares around one classifier."""

from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field

from coserve_server.api import openapi, problems
from coserve_server.api.exposition import create_registry
from coserve_server.api.middleware import observing, security
from coserve_server.api.middleware.compressing import Compressing
from coserve_server.api.middleware.equivalents import Equivalents
from coserve_server.api.middleware.lingering_close import LingeringClose
from coserve_server.api.page import routes as page
from coserve_server.api.v1 import routes as v1
from coserve_server.api.v2 import repository as v2_repository
from coserve_server.api.v2 import routes as v2
from coserve_server.api.v2.errors import error_response
from coserve_server.catalogue.control import RepositoryControl
from coserve_server.errors import NoQuorumError
from coserve_server.observability.totals import OwnTotals, Totals
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing

if TYPE_CHECKING:
    from coserve_server.observability.tracing import Tracer


class Status(BaseModel):
    """The server's state."""

    status: str = Field(examples=["alive", "ready"])
    not_served: list[str] = Field(
        default=[], description="Names of models that cannot be loaded; absent if all are."
    )


def build_app(
    classifier: Classifier,
    keys: KeyRing | None = None,
    control: RepositoryControl | None = None,
    tracer: "Tracer | None" = None,
    totals: Totals | None = None,
) -> FastAPI:
    """Build the application over a classifier.

    Args:
        keys: the valid API keys; None to require none.
        control: loads and unloads ensembles if the settings allow it; None with the engine `triton`.
        tracer: sends traces of requests; None to send none.
        totals: what the server has counted; None if that is what the classifier has.
    """
    if totals is None:
        registry = create_registry(classifier, classifier.metrics, None)
        totals = OwnTotals(registry, classifier.statistics)
    # FastAPI's own page /docs loads its scripts from the internet.
    app = FastAPIOffline(
        redoc_url=None,
        title="Coserve",
        version=version("coserve"),
        summary="Image classification by ensembles whose members run concurrently.",
        redirect_slashes=False,
    )
    problems.install(app, {"/v2": error_response})
    security.install(app, classifier.settings, keys)
    openapi.install(app)
    app.add_middleware(Compressing)
    app.add_middleware(LingeringClose)
    app.add_middleware(Equivalents, prefix=classifier.settings.root_path)
    observing.install(app, classifier, tracer, totals)
    app.state.classifier = classifier
    app.state.control = control
    app.state.totals = totals
    app.include_router(v1.router)
    app.include_router(v2.router)
    app.include_router(v2_repository.router)
    app.include_router(page.create_router(classifier.settings.page))
    # The first matching route answers, so FastAPI's routes of the same paths only document them.
    app.router.routes[:0] = [*v1.hot_routes, *v2.hot_routes]

    @app.get("/healthz", tags=["health"], response_model_exclude_defaults=True)
    async def healthz() -> Status:
        """Report that the process is alive."""
        return Status(status="alive")

    @app.get(
        "/readyz",
        tags=["health"],
        responses=problems.describe_responses(NoQuorumError),
        response_model_exclude_defaults=True,
    )
    async def readyz() -> Status:
        """Report whether every served ensemble has its quorum of members, and the default model is served."""
        if faults := classifier.catalogue.faults():
            raise NoQuorumError("; ".join(faults))
        return Status(status="ready", not_served=sorted(classifier.catalogue.not_served))

    return app
