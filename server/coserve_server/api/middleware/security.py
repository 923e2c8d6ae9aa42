"""Authentication by API keys (RFC 6750), authorization by roles, and CORS."""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve_server.api.middleware.page_headers import PageHeaders, docs_policy
from coserve_server.api.problems import KINDS, describe_responses, respond_with_problem
from coserve_server.api.requests.authentication import authenticate
from coserve_server.api.requests.dependencies import route_path
from coserve_server.errors import UnauthenticatedError
from coserve_server.security.key_ring import KeyRing
from coserve_server.settings import Settings

OPEN = frozenset(
    {"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"}
)
"""Paths that need no key: browsers send none when they open a page, and no page shows the models without."""
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")

EXPOSED = (
    "Inference-Header-Content-Length",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
    "traceresponse",
)
"""Response headers that a web page's script may read."""

CHALLENGE = 'Bearer realm="coserve"'


class RequireKey:
    """Pass only requests with a valid key, and put the key's record into `scope["state"]["api_key"]`."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with 401."""
        if scope["type"] == "http" and not _is_open(route_path(scope)):
            try:
                key = await authenticate(self.keys, dict(scope["headers"]))
            except UnauthenticatedError as error:
                await _refuse(scope, error)(scope, receive, send)
                return
            scope.setdefault("state", {})["api_key"] = key
        await self.app(scope, receive, send)


def install(app: FastAPI, settings: Settings, keys: KeyRing | None) -> None:
    """Add the middlewares that the settings ask for."""
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys)
        _describe_keys(app)
    if settings.cors_origins:
        # Outside RequireKey, since browsers send preflight requests without a key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    app.add_middleware(PageHeaders, describe_policy=partial(docs_policy, app))


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def _refuse(scope: Scope, error: UnauthenticatedError) -> ASGIApp:
    challenge = f'{CHALLENGE}, error="invalid_token"' if error.key_sent else CHALLENGE
    headers = {"WWW-Authenticate": challenge}
    return respond_with_problem(Request(scope), KINDS[UnauthenticatedError], str(error), headers)


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema["paths"].values() for operation in path.values()]


def _describe_keys(app: FastAPI) -> None:
    """Describe in the OpenAPI schema how to send a key, so that /docs can ask for one."""
    undescribed = app.openapi
    refusal = describe_responses(UnauthenticatedError)

    def openapi() -> dict[str, Any]:
        schema = undescribed()
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        schema["security"] = [{"bearer": []}, {"header": []}]
        for path in OPEN & schema["paths"].keys():
            for operation in schema["paths"][path].values():
                operation["security"] = []
        for operation in _operations(schema):
            if "security" not in operation and "default" not in operation["responses"]:
                operation["responses"] |= {str(status): text for status, text in refusal.items()}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's manual does
