"""Answers errors with problem documents (RFC 9457), or in another format installed for a path."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coserve_server import errors
from coserve_server.api.requests.dependencies import get_record, route_path
from coserve_server.observability.record import Record

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that disconnected; only the log and the metrics show it."""
MEDIA_TYPE = "application/problem+json"
MAX_DETAIL = 1000
"""Limit in characters: a detail may quote long names and values from the request."""


class Problem(BaseModel):
    """A problem document (RFC 9457). Programs can rely on `type` and `status`; the texts are for people."""

    type: str = Field(description="Identifies the kind of problem.", examples=["/problems/bad-image"])
    title: str = Field(description="Name of the kind of problem.", examples=["Bad image"])
    status: int = Field(description="HTTP status code.", examples=[400])
    detail: str = Field(description="What was wrong, and what is allowed.")
    instance: str = Field(description="Identifies this occurrence; the server's log has it too.")


class Kind(NamedTuple):
    """Status and slug of one kind of problem."""

    status: int
    slug: str


ErrorFormat = Callable[[int, str, Mapping[str, str] | None], JSONResponse]
"""Makes a response from a status, a detail and additional headers."""

KINDS: Mapping[type[errors.RequestError], Kind] = {
    errors.BadImageError: Kind(400, "bad-image"),
    errors.BadBodyError: Kind(400, "bad-body"),
    errors.UnauthenticatedError: Kind(401, "unauthenticated"),
    errors.ForbiddenError: Kind(403, "forbidden"),
    errors.UnknownModelError: Kind(404, "unknown-model"),
    errors.UploadTimeoutError: Kind(408, "upload-timeout"),
    errors.BodyTooLargeError: Kind(413, "body-too-large"),
    errors.TooManyImagesError: Kind(413, "too-many-images"),
    errors.TooManyPixelsError: Kind(413, "too-many-pixels"),
    errors.UnsupportedTypeError: Kind(415, "unsupported-type"),
    errors.InvalidParametersError: Kind(422, "invalid-parameters"),
    errors.NotEnabledError: Kind(501, "not-enabled"),
    errors.OverloadedError: Kind(503, "overloaded"),
    errors.NoQuorumError: Kind(503, "no-quorum"),
    errors.DeadlineError: Kind(504, "deadline"),
}
_FRAMEWORK_SLUGS = {404: "not-found", 405: "method-not-allowed"}
_HEADERS: Mapping[int, Mapping[str, str]] = {
    403: {"WWW-Authenticate": 'Bearer realm="coserve", error="insufficient_scope", scope="admin"'},
    503: {"Retry-After": "1"},
}


def respond_with_problem(
    request: Request, kind: Kind, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Log a problem and return the response: a problem document, or the format installed for the path."""
    detail = detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}…"
    document = Problem(
        type=f"/problems/{kind.slug}",
        title=kind.slug.replace("-", " ").capitalize(),
        status=kind.status,
        detail=detail,
        instance=note_problem(get_record(request), kind, detail),
    )
    formats: Mapping[str, ErrorFormat] = request.app.state.error_formats
    for prefix, respond in formats.items():
        if f"{route_path(request.scope)}/".startswith(f"{prefix}/"):
            return respond(kind.status, detail, headers)
    return JSONResponse(document.model_dump(), kind.status, headers, MEDIA_TYPE)


def note_problem(record: Record, kind: Kind, detail: str) -> str:
    """Log a problem, note it in the request's record, and return the URN of this occurrence."""
    record.problem = kind.slug
    record.instance = uuid4().urn
    log = logger.warning if kind.status >= 500 else logger.info
    extra = {"instance": record.instance}
    log("%s /problems/%s: %s", record.instance, kind.slug, detail, extra=extra)
    return record.instance


def describe_responses(*types: type[errors.RequestError]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of the responses to these errors, by status."""
    problems: dict[int, list[str]] = {}
    for error in types:
        kind = KINDS[error]
        problems.setdefault(kind.status, []).append(f"`/problems/{kind.slug}`")
    # Given as `model`, FastAPI would also document it as application/json.
    schema = {"$ref": "#/$defs/Problem", "$defs": {"Problem": Problem.model_json_schema()}}
    content = {MEDIA_TYPE: {"schema": schema}}
    return {
        status: {"description": " or ".join(names), "content": content} for status, names in problems.items()
    }


def install(app: FastAPI, formats: Mapping[str, ErrorFormat]) -> None:
    """Make the application answer every error with a problem document; add other middlewares after this.

    Args:
        formats: other error formats, by the prefix of the paths that use them.
    """
    app.state.error_formats = formats

    @app.exception_handler(errors.RequestError)
    async def answer_request_error(request: Request, error: errors.RequestError) -> JSONResponse:
        kind = KINDS[type(error)]
        headers = _HEADERS.get(kind.status)
        if isinstance(error, errors.OverloadedError):
            headers = {"Retry-After": str(error.retry_after_s)}
        return respond_with_problem(request, kind, str(error), headers)

    @app.exception_handler(RequestValidationError)
    async def answer_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
        return respond_with_problem(request, KINDS[errors.InvalidParametersError], "; ".join(faults))

    @app.exception_handler(HTTPException)
    async def answer_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        kind = Kind(error.status_code, _FRAMEWORK_SLUGS.get(error.status_code, "http-error"))
        detail = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        return respond_with_problem(request, kind, detail, error.headers)

    @app.exception_handler(errors.DisconnectedError)
    async def answer_disconnect(request: Request, error: errors.DisconnectedError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_middleware(_CatchAll)


class _CatchAll:
    """Answers exceptions without a handler, which are bugs.

    Starlette's own catch-all is outside the middlewares that add headers and report the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; log an unexpected exception and answer it."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if started or scope["type"] != "http":
                raise
            logger.exception("a request failed")
            detail = "internal error; see the server's log"
            response = respond_with_problem(Request(scope), Kind(500, "internal"), detail)
            await response(scope, receive, send)
