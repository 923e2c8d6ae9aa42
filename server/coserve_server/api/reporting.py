"""Begins the record of a request, and reports its outcome to metrics, traces and the access log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from os import urandom
from typing import TYPE_CHECKING
from urllib.parse import quote

from coserve_server.observability.metrics import Metrics
from coserve_server.observability.record import Record, logged_id

if TYPE_CHECKING:
    from coserve_server.observability.tracing import Tracer

logger = logging.getLogger("coserve_server.access")

UNMATCHED = "unmatched"
"""Route in metrics and traces of requests that match none."""
_TOKEN = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True)
class Outcome:
    """How a request ended, in its transport's terms.

    Attributes:
        method: HTTP method, or `GRPC`.
        path: the path or method that the client named.
        route: the route that this matched, for metrics and traces.
        status: HTTP status, or name of the gRPC status.
        failed: whether the server is at fault.
        attributes: the transport's attributes in OpenTelemetry's conventions; unused without a tracer.
        client: the client's address, if it is known.
        key: name of the API key, if there is one.
    """

    method: str
    path: str
    route: str
    status: int | str
    failed: bool
    attributes: Mapping[str, str | int]
    client: str | None = None
    key: str | None = None


class Reporter:
    """Begins records, and reports how their requests ended."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None, *, access_log: bool) -> None:
        """Count in `metrics`; send traces and log requests if asked to."""
        self.metrics = metrics
        self.tracer = tracer
        self.access_log = access_log

    def begin(self, request_id: str | None, name: str, headers: Mapping[str, str]) -> Record:
        """Begin the record of a request; the current task's log lines carry its id from now on.

        Args:
            request_id: the client's; None for a new one.
            name: what the request's span is called until its route is known.
            headers: may hold the client's trace context; unused without a tracer.
        """
        record = Record(request_id or urandom(16).hex(), time.perf_counter_ns())
        logged_id.set(record.id)
        if self.tracer is not None:
            self.tracer.begin(record, name, headers)
        return record

    def end(self, record: Record, outcome: Outcome, answered_ns: int) -> None:
        """Report the outcome of a request."""
        duration_ns = answered_ns - record.began_ns
        self.metrics.count_request(record, outcome.route, outcome.status, duration_ns / 1e9)
        if self.tracer is not None:
            name = f"{outcome.method} {outcome.route}"
            self.tracer.end(record, name, outcome.attributes, answered_ns, failed=outcome.failed)
        if self.access_log and logger.isEnabledFor(logging.INFO):
            _log(record, outcome, duration_ns / 1e6)


def check_id(text: str) -> str | None:
    """Return a client's request id if it is 1 to 128 visible ASCII characters; otherwise None."""
    return text if _TOKEN.fullmatch(text) else None


def _log(record: Record, outcome: Outcome, duration_ms: float) -> None:
    path = quote(outcome.path)
    fields = {
        "method": outcome.method,
        "path": path,
        "status": outcome.status,
        "duration_ms": round(duration_ms, 3),
        "client": outcome.client,
        "key": outcome.key,
        "model": record.model or None,
        "images": record.images or None,
        "problem": record.problem,
        "instance": record.instance,
    }
    logger.info(
        "%s %s %s %.1f ms",
        outcome.method,
        path,
        outcome.status,
        duration_ms,
        extra={name: value for name, value in fields.items() if value is not None},
    )
