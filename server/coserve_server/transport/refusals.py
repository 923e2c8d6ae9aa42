"""Responses to requests that the application never sees."""

import logging
from http import HTTPStatus
from uuid import uuid4

from coserve_server.api.problems import MEDIA_TYPE, Problem
from coserve_server.observability.record import REQUEST_ID

logger = logging.getLogger(__name__)


def write_problem(status: int, slug: str, detail: str) -> bytes:
    """Write a problem document as an HTTP response that closes the connection."""
    title = slug.replace("-", " ").capitalize()
    problem = Problem(
        type=f"/problems/{slug}", title=title, status=status, detail=detail, instance=uuid4().urn
    )
    request_id = uuid4().hex
    extra = {"instance": problem.instance, "request_id": request_id}
    logger.info("%s %s: %s", problem.instance, problem.type, detail, extra=extra)
    body = problem.model_dump_json().encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        f"{REQUEST_ID}: {request_id}",
        "Connection: close",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        head.append("Allow: GET, HEAD, POST")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head.append("Retry-After: 1")
    return "\r\n".join([*head, "", ""]).encode() + body
