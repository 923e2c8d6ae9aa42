"""`GET /metrics`."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def router(registry: CollectorRegistry) -> APIRouter:
    """The route that gives a registry's metrics to Prometheus."""
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Say what the server does, in Prometheus' text format, or OpenMetrics where that is asked for."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})

    return routes
