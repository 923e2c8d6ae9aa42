"""gRPC's health service (https://github.com/grpc/grpc/blob/master/doc/health-checking.md)."""

import asyncio
import contextlib
from collections.abc import Collection

from grpc import StatusCode
from grpc_health.v1 import health_pb2 as messages

from coserve_server.api.grpc.calls import Call
from coserve_server.api.grpc.errors import STOPPING, Fault
from coserve_server.api.grpc.inference import receive
from coserve_server.api.problems import Kind
from coserve_server.api.requests.timeouts import timeout
from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.pipeline.admission import Admission

MAX_WATCHES = 64
POLL_S = 1.0


class Health:
    """Reports `SERVING` while every ensemble has its quorum of members and the server is not stopping."""

    def __init__(self, catalogue: Catalogue, services: Collection[str]) -> None:
        """Report the same for each of the services, and for the empty name."""
        self._catalogue = catalogue
        self._services = {"", *services}
        self._watches = Admission(MAX_WATCHES, longest_s=1)
        self._stopping = asyncio.Event()

    async def check(self, call: Call) -> messages.HealthCheckResponse | Fault:
        """Report the status of a service."""
        service = (await receive(messages.HealthCheckRequest, call)).service
        status = self._status(service)
        if status == messages.HealthCheckResponse.SERVICE_UNKNOWN:
            text = f"there is no service {service!r}"
            return Fault(StatusCode.NOT_FOUND, Kind(404, "not-found"), text)
        return messages.HealthCheckResponse(status=status)

    async def watch(self, call: Call) -> Fault:
        """Report the status of a service now, and whenever it changes.

        Raises:
            OverloadedError: too many clients watch.
        """
        with self._watches.admitted():
            service = (await receive(messages.HealthCheckRequest, call)).service
            reported = None
            while not self._stopping.is_set():
                status = self._status(service)
                if status != reported:
                    await call.write(messages.HealthCheckResponse(status=status))
                    reported = status
                with contextlib.suppress(asyncio.TimeoutError):
                    async with timeout(POLL_S):
                        await self._stopping.wait()
            return STOPPING

    def stop(self) -> None:
        """End all watches."""
        self._stopping.set()

    def _status(self, service: str) -> int:
        if service not in self._services:
            name = "SERVICE_UNKNOWN"
        else:
            name = "NOT_SERVING" if self._catalogue.faults() else "SERVING"
        return int(messages.HealthCheckResponse.ServingStatus.Value(name))
