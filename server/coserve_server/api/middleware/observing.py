"""Gives every request an id and a record, and reports its outcome to metrics, traces and the log."""

import logging
import re
import time
from os import urandom
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coserve_server.api import metrics
from coserve_server.api.exposition import create_registry
from coserve_server.catalogue.reload import Reloader
from coserve_server.observability.metrics import Metrics
from coserve_server.observability.record import REQUEST_ID, Record, logged_id
from coserve_server.pipeline.classifier import Classifier

if TYPE_CHECKING:
    from coserve_server.observability.tracing import Tracer

logger = logging.getLogger("coserve_server.access")

_HEADER = REQUEST_ID.lower().encode()
_TOKEN = re.compile(rb"[!-~]{1,128}")
UNMATCHED = "unmatched"
"""Route in metrics and traces of requests that match none."""


class Observe:
    """Observe requests; the outermost middleware, so that it sees every response."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: "Tracer | None", *, access_log: bool) -> None:
        self.app = app
        self.metrics = metrics
        self.tracer = tracer
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and report its outcome."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(choose_id(scope), time.perf_counter_ns())
        scope.setdefault("state", {})["record"] = record
        logged_id.set(record.id)
        if self.tracer is not None:
            self.tracer.begin(record, scope)
        headers = [(_HEADER, record.id.encode())]
        if record.traceparent is not None:
            headers.append((b"traceresponse", record.traceparent.encode()))
        status = 500
        answered_ns = 0

        async def watched(message: Message) -> None:
            nonlocal status, answered_ns
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)
            # Later messages may wait until the rest of a refused body has been dropped.
            answered_ns = answered_ns or time.perf_counter_ns()

        try:
            await self.app(scope, receive, watched)
        finally:
            self._report(record, scope, status, answered_ns or time.perf_counter_ns())

    def _report(self, record: Record, scope: Scope, status: int, answered_ns: int) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self.metrics.count_request(record, route, status, (answered_ns - record.began_ns) / 1e9)
        if self.tracer is not None:
            self.tracer.end(record, scope, route, status, answered_ns)
        if self.access_log and logger.isEnabledFor(logging.INFO):
            _log(record, scope, status, (answered_ns - record.began_ns) / 1e6)


def install(app: FastAPI, classifier: Classifier, tracer: "Tracer | None", reloader: Reloader | None) -> None:
    """Add the middleware that observes requests, and the route for the metrics."""
    app.include_router(metrics.create_router(create_registry(classifier, classifier.metrics, reloader)))
    app.add_middleware(
        Observe, metrics=classifier.metrics, tracer=tracer, access_log=classifier.settings.access_log
    )


def choose_id(scope: Scope) -> str:
    """Return the client's request id if it is 1 to 128 visible ASCII characters, otherwise a new one."""
    for name, value in scope["headers"]:
        if name == _HEADER and _TOKEN.fullmatch(value):
            return str(value, "ascii")
    return urandom(16).hex()


def _log(record: Record, scope: Scope, status: int, duration_ms: float) -> None:
    path = quote(scope["path"])
    key = scope["state"].get("api_key")
    fields = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_ms": round(duration_ms, 3),
        "client": scope["client"][0] if scope.get("client") else None,
        "key": key.name if key else None,
        "model": record.model or None,
        "images": record.images or None,
        "problem": record.problem,
        "instance": record.instance,
    }
    logger.info(
        "%s %s %d %.1f ms",
        scope["method"],
        path,
        status,
        duration_ms,
        extra={name: value for name, value in fields.items() if value is not None},
    )
