"""The route `GET /metrics`."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from coserve_server.observability.totals import Totals


class _Collected(Collector):
    """Metrics that were collected before."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def create_router(totals: Totals) -> APIRouter:
    """Return a router with the route that exports the server's metrics."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=Response)
    async def export_metrics(request: Request) -> Response:
        """Export metrics in Prometheus' text format, or in OpenMetrics' if the Accept header asks for it."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        content = encode(_Collected(await totals.collect()))
        return Response(content, headers={"Content-Type": media_type})

    return router
