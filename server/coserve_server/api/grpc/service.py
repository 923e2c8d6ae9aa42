"""Finds the method of a gRPC call."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

from coserve_server.api.grpc.calls import Answer, Call, Calls, Context
from coserve_server.api.grpc.health import MAX_WATCHES, Health
from coserve_server.api.grpc.inference import Inference
from coserve_server.api.grpc.reflection import MAX_STREAMS, Reflection
from coserve_server.api.grpc.streams import Streams
from coserve_server.api.reporting import UNMATCHED, Reporter
from coserve_server.catalogue.control import RepositoryControl
from coserve_server.errors import NotEnabledError
from coserve_server.observability.totals import Totals
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.settings import Settings

INFERENCE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION = (
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name,
    "grpc.reflection.v1.ServerReflection",
)
"""The old and the new name of the same service."""
OPEN = frozenset({"ServerLive", "ServerReady"})
"""Methods of the inference service that need no key, like the same calls of `/v2`."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Services(grpc.GenericRpcHandler):
    """Finds the handler of a method once a call's metadata has arrived.

    Handlers receive messages themselves, as bytes, to authenticate the client first and to check messages
    before they parse them. To gRPC, the requests of every call are therefore a stream.
    """

    def __init__(
        self,
        core: Classifier,
        keys: KeyRing | None,
        control: RepositoryControl | None,
        reporter: Reporter,
        totals: Totals,
    ) -> None:
        """Make the handlers.

        Args:
            keys: the valid API keys; None to require none.
            control: loads and unloads ensembles if the settings allow it; None with the engine `triton`.
            totals: what the server has counted.
        """
        self._calls = Calls(reporter, keys)
        inference = Inference(core, control, totals)
        self._streams = Streams(self._calls, inference)
        self._health = Health(core.catalogue, [INFERENCE.full_name, HEALTH])
        reflection = Reflection([INFERENCE.full_name, HEALTH, *REFLECTION])
        self._handlers: dict[str, Handler] = {}
        for method in INFERENCE.methods:
            answer = _METHODS.get(method.name, _refuse_unsupported)
            self._add_unary(INFERENCE.full_name, method.name, partial(answer, inference), method.name in OPEN)
        self._add_stream(INFERENCE.full_name, "ModelStreamInfer", self._streams.model_stream_infer)
        self._add_unary(HEALTH, "Check", self._health.check, is_open=True)
        self._add_stream(HEALTH, "Watch", self._health.watch, is_open=True)
        for name in REFLECTION:
            self._add_stream(name, "ServerReflectionInfo", reflection.server_reflection_info, is_open=True)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of a method."""
        method = handler_call_details.method
        return self._handlers.get(method) or self._unary(method, UNMATCHED, _refuse_unknown)

    def stop(self) -> None:
        """End streams once their requests have been answered."""
        self._streams.stop()
        self._health.stop()

    def _add_unary(self, service: str, name: str, answer: Answer, is_open: bool) -> None:
        method = f"/{service}/{name}"
        self._handlers[method] = self._unary(method, method, answer, is_open=is_open)

    def _unary(self, method: str, route: str, answer: Answer, *, is_open: bool = False) -> Handler:
        async def handle(_: AsyncIterator[bytes], context: Context) -> Message | None:
            return await self._calls.run(context, method, route, answer, is_open=is_open)

        return grpc.stream_unary_rpc_method_handler(handle, response_serializer=_serialize)

    def _add_stream(self, service: str, name: str, answer: Answer, *, is_open: bool = False) -> None:
        method = f"/{service}/{name}"

        async def handle(_: AsyncIterator[bytes], context: Context) -> None:
            await self._calls.run(context, method, method, answer, is_open=is_open)

        self._handlers[method] = grpc.stream_stream_rpc_method_handler(handle, response_serializer=_serialize)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def max_open_calls(settings: Settings) -> int:
    """Return how many calls may infer or stay open at once; each kind has its own limit."""
    return 2 * settings.max_requests + MAX_WATCHES + MAX_STREAMS


async def _refuse_unsupported(_: Inference, call: Call) -> Message:
    raise NotEnabledError(f"{call.method}: shared memory, tracing and log settings are not supported")


async def _refuse_unknown(call: Call) -> Message:
    raise NotEnabledError(f"there is no method {call.method}")


_METHODS = {
    "ServerLive": Inference.server_live,
    "ServerReady": Inference.server_ready,
    "ServerMetadata": Inference.server_metadata,
    "ModelReady": Inference.model_ready,
    "ModelMetadata": Inference.model_metadata,
    "ModelConfig": Inference.model_config,
    "ModelStatistics": Inference.model_statistics,
    "ModelInfer": Inference.model_infer,
    "RepositoryIndex": Inference.repository_index,
    "RepositoryModelLoad": Inference.repository_model_load,
    "RepositoryModelUnload": Inference.repository_model_unload,
}
