"""Who may ask what: API keys (RFC 6750), the roles they need, and pages of other origins (CORS)."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve_server.api.middleware.page_headers import PageHeaders, docs_policy
from coserve_server.api.problems import KINDS, problem
from coserve_server.errors import UnauthenticatedError
from coserve_server.security.key_ring import KeyRing
from coserve_server.settings import Settings

OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})
"""Answered without a key: browsers bring none to a page, and /docs tells nothing of the models."""
OPEN_FOLDER = "/static-offline-docs/"

EXPOSED = (
    "Inference-Header-Content-Length",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
    "traceresponse",
)
"""Headers of answers that a page's script may read."""

CHALLENGE = 'Bearer realm="coserve"'


class RequireKey:
    """Lets only requests with a valid key pass; `scope["state"]["api_key"]` is then what is known of it."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "http" and not _is_open(scope["path"]):
            key = _key(dict(scope["headers"]))
            known = None if key is None else self.keys.find(key)
            if known is None:
                await _refusal(scope, brought=key is not None)(scope, receive, send)
                return
            scope.setdefault("state", {})["api_key"] = known
        await self.app(scope, receive, send)


def install(app: FastAPI, settings: Settings, keys: KeyRing | None) -> None:
    """Guard the application as its settings say."""
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys)
        _describe(app)
    if settings.cors_origins:
        # Outside of the keys, since browsers ask in advance (preflight) without one.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )
    app.add_middleware(PageHeaders, policy=docs_policy(app))


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDER)


def _key(headers: dict[bytes, bytes]) -> bytes | None:
    """The key a request brings, in either header; ASGI gives their names in lower case."""
    if (key := headers.get(b"x-api-key")) is not None:
        return key
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None


def _refusal(scope: Scope, *, brought: bool) -> ASGIApp:
    if brought:
        detail, challenge = "the API key is not valid", f'{CHALLENGE}, error="invalid_token"'
    else:
        detail = "an API key is needed: send Authorization: Bearer KEY, or X-API-Key: KEY"
        challenge = CHALLENGE
    headers = {"WWW-Authenticate": challenge}
    return problem(Request(scope), KINDS[UnauthenticatedError], detail, headers)


def _describe(app: FastAPI) -> None:
    """Say in the API's description how keys are sent, so that /docs can ask for one."""
    undescribed = app.openapi

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
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's manual does
