"""Routes for the calls whose overhead counts: classification and inference."""

from starlette.routing import Match, Route
from starlette.types import Scope


class HotRoute(Route):
    """A Starlette route that answers in place of FastAPI's route of the same path.

    FastAPI's route stays, for the OpenAPI description alone. Its search for a route, and its work around a
    handler that reads the parameters itself, took a third of a small image's processor time outside the
    classifier.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as Starlette does, and put the route into the scope as FastAPI does: metrics name it."""
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self}
