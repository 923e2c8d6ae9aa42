"""The route `GET /metrics`."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def create_router(registry: CollectorRegistry) -> APIRouter:
    """Return a router with the route that exports a registry's metrics."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=Response)
    async def export_metrics(request: Request) -> Response:
        """Export metrics in Prometheus' text format, or in OpenMetrics' if the Accept header asks for it."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})

    return router
