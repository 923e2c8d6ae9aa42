"""Sends traces of requests over OTLP/HTTP; needs the extra `otel`.

Spans are made when a request has been answered, from times that were taken anyway.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OpenTelemetryTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from coserve_server.observability.record import Record
from coserve_server.outcomes import Share
from coserve_server.settings.listening import is_loopback

EXPORT_TIMEOUT_S = 5
CLOSE_TIMEOUT_S = 2
"""A collector that does not answer must not hold up the shutdown."""


class Tracer:
    """Makes the spans of requests, and sends them to the collector from a thread.

    Sampling, the resource's attributes and headers to the collector follow OpenTelemetry's own variables
    (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
    """

    def __init__(self, endpoint: str) -> None:
        """Send to the collector at this base URL; it need not be up yet."""
        own = Resource({"service.name": "coserve", "service.version": version("coserve")})
        resource = own.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        session = requests.Session()
        # The environment's proxy does not lead to this machine.
        session.trust_env = not is_loopback(urlsplit(endpoint).hostname or "")
        exporter = OTLPSpanExporter(
            f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S, session=session
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("coserve_server", version("coserve"))
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: Record, name: str, headers: Mapping[str, str]) -> None:
        """Begin the server's span, as a child of the client's if the request's headers name one."""
        record.span = self._tracer.start_span(
            name,
            self._propagator.extract(headers),
            SpanKind.SERVER,
            start_time=record.began_ns + time.time_ns() - time.perf_counter_ns(),
        )
        context = record.span.get_span_context()
        # OTEL_SDK_DISABLED makes spans without an identity.
        if context.is_valid:
            record.traceparent = (
                f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
            )

    def end(
        self,
        record: Record,
        name: str,
        attributes: Mapping[str, AttributeValue],
        answered_ns: int,
        *,
        failed: bool,
    ) -> None:
        """End the server's span, and add a child for each step of the request.

        Args:
            attributes: the transport's, by OpenTelemetry's conventions.
            failed: whether the server is at fault.
        """
        span = record.span
        if not span.is_recording():
            return
        span.update_name(name)
        span.set_attributes({**attributes, **_attributes(record)})
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        _Children(self._tracer, record, span.start_time - record.began_ns).make()
        span.end(answered_ns + span.start_time - record.began_ns)

    async def close(self) -> None:
        """Send the remaining spans, for at most CLOSE_TIMEOUT_S."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_TIMEOUT_S)


class _Children:
    """Makes the child spans of a request's span; `epoch_ns` is the time at which `perf_counter_ns` was 0."""

    def __init__(self, tracer: OpenTelemetryTracer, record: Record, epoch_ns: int) -> None:
        self._tracer = tracer
        self._record = record
        self._epoch_ns = epoch_ns

    def make(self) -> None:
        """Make all spans."""
        record = self._record
        root = record.span
        for index, image in enumerate(record.prepared):
            attributes = {"coserve.image": index}
            self._child(root, "decode", image.began_ns, image.decoded_ns, attributes)
            self._child(root, "preprocess", image.decoded_ns, image.ended_ns, attributes)
        waiting_since = record.prepared_ns
        for share in record.shares:
            # If the engine batches on its own, a request's batches run concurrently.
            if share.began_ns > waiting_since:
                self._child(root, "queue", waiting_since, share.began_ns)
            self._inference(share)
            waiting_since = max(waiting_since, share.ended_ns)
        if record.combined_ns is not None:
            self._child(root, "combine", *record.combined_ns)

    def _inference(self, share: Share) -> None:
        parent = self._child(self._record.span, "inference", share.began_ns, share.ended_ns)
        for run in share.runs:
            attributes: dict[str, AttributeValue] = {"coserve.member": run.name}
            if run.device is not None:
                attributes["coserve.device"] = run.device
            reason = run.failure.reason if run.failure else None
            self._child(parent, f"member {run.name}", run.start_ns, run.end_ns, attributes, reason)

    def _child(
        self,
        parent: Span,
        name: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, AttributeValue] | None = None,
        error: str | None = None,
    ) -> Span:
        span = self._tracer.start_span(
            name,
            set_span_in_context(parent),
            attributes=attributes,
            start_time=start_ns + self._epoch_ns,
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(end_ns + self._epoch_ns)
        return span


def _attributes(record: Record) -> dict[str, AttributeValue]:
    """Return our own attributes."""
    attributes: dict[str, AttributeValue] = {
        "coserve.request_id": record.id,
        "coserve.model": record.model,
        "coserve.images": record.images,
        "coserve.degraded": record.degraded,
    }
    if record.stop_confidence is not None:
        attributes["coserve.early_stop.confidence"] = record.stop_confidence
        attributes["coserve.image_members"] = [len(members) for members in record.answered]
        if record.stop_loss is not None:
            attributes["coserve.early_stop.loss"] = record.stop_loss
    if record.problem is not None and record.instance is not None:
        attributes |= {"error.type": record.problem, "coserve.problem": record.instance}
    return attributes
