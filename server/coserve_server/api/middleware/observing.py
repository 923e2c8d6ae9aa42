"""Gives every request an id and a record, and reports its outcome to metrics, traces and the log."""

import time
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coserve_server.api import metrics
from coserve_server.api.reporting import UNMATCHED, Outcome, Reporter, check_id
from coserve_server.observability.record import REQUEST_ID, Record
from coserve_server.observability.totals import Totals
from coserve_server.pipeline.classifier import Classifier

if TYPE_CHECKING:
    from coserve_server.observability.tracing import Tracer

_HEADER = REQUEST_ID.lower().encode()


class Observe:
    """Observe requests; the outermost middleware, so that it sees every response."""

    def __init__(self, app: ASGIApp, reporter: Reporter) -> None:
        self.app = app
        self.reporter = reporter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and report its outcome."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = self.reporter.begin(_read_id(scope), scope["method"], self._read_headers(scope))
        scope.setdefault("state", {})["record"] = record
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

    def _read_headers(self, scope: Scope) -> dict[str, str]:
        if self.reporter.tracer is None:
            return {}
        return {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"]}

    def _report(self, record: Record, scope: Scope, status: int, answered_ns: int) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        key = scope["state"].get("api_key")
        outcome = Outcome(
            method=scope["method"],
            path=scope["path"],
            route=route,
            status=status,
            failed=status >= 500,
            attributes={} if self.reporter.tracer is None else _attributes(scope, route, status),
            client=scope["client"][0] if scope.get("client") else None,
            key=key.name if key else None,
        )
        self.reporter.end(record, outcome, answered_ns)


def install(app: FastAPI, classifier: Classifier, tracer: "Tracer | None", totals: Totals) -> None:
    """Add the middleware that observes requests, and the route for the metrics."""
    app.include_router(metrics.create_router(totals))
    reporter = Reporter(classifier.metrics, tracer, access_log=classifier.settings.access_log)
    app.add_middleware(Observe, reporter=reporter)


def _attributes(scope: Scope, route: str, status: int) -> dict[str, str | int]:
    """Return the attributes of OpenTelemetry's HTTP conventions."""
    return {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status,
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
    }


def _read_id(scope: Scope) -> str | None:
    """Return the client's request id, if it is a valid one."""
    for name, value in scope["headers"]:
        if name == _HEADER and (valid := check_id(str(value, "latin-1"))):
            return valid
    return None
