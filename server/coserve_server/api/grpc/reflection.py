"""gRPC's reflection service: describes the services to tools such as grpcurl.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from collections.abc import AsyncIterator, Collection

from grpc_reflection.v1alpha import reflection_pb2 as messages
from grpc_reflection.v1alpha.reflection import aio

from coserve_server.api.grpc.calls import SMALL_BYTES, SMALL_TIMEOUT_S, Call
from coserve_server.api.grpc.errors import Fault
from coserve_server.api.grpc.messages import parse
from coserve_server.pipeline.admission import Admission

MAX_STREAMS = 16


class Reflection:
    """Answers the questions of a stream; the service's two versions differ only in name."""

    def __init__(self, services: Collection[str]) -> None:
        """Describe these services."""
        self._open = Admission(MAX_STREAMS, longest_s=SMALL_TIMEOUT_S)
        self._servicer = aio.ReflectionServicer(services)

    async def server_reflection_info(self, call: Call) -> Fault | None:
        """Answer a client's questions until it ends the stream, or asks nothing for some seconds.

        Raises:
            OverloadedError: too many such streams are open.
        """
        with self._open.admitted():
            async for answer in self._servicer.ServerReflectionInfo(_questions(call), call.context):
                await call.write(answer)
        return None


async def _questions(call: Call) -> AsyncIterator[messages.ServerReflectionRequest]:
    while (data := await call.receive_next(SMALL_TIMEOUT_S, SMALL_BYTES)) is not None:
        yield parse(messages.ServerReflectionRequest, data)
