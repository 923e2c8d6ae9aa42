"""A gRPC server over the core, in the test's own event loop, and messages to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from coserve_server.api.app import build_app
from coserve_server.api.exposition import create_registry
from coserve_server.api.grpc.service import Services
from coserve_server.api.reporting import Reporter
from coserve_server.observability.totals import OwnTotals
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.settings import load_settings
from coserve_server.transport.grpc_server import GrpcServer
from tests.server.api.application import IMAGES
from tests.server.fake_engine import FakeEngine

T = TypeVar("T")
METHOD = "/inference.GRPCInferenceService/"
UNLIMITED = [("grpc.max_send_message_length", -1)]
LOCAL = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@dataclass
class Served:
    """A running server, and a client of it."""

    core: Classifier
    server: GrpcServer
    channel: grpc.aio.Channel
    stub: Any

    @property
    def app(self) -> Any:
        """The application over HTTP and the same core."""
        return build_app(self.core)


@asynccontextmanager
async def serving(
    engine: FakeEngine,
    *,
    tracer: Any = None,
    keys: Path | None = None,
    reloader: Any = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    read = load_settings(repository="unused", api_keys_file=keys, **settings)
    core = Classifier(engine, read, cores=1)
    server = GrpcServer(read, 0)
    reporter = Reporter(core.metrics, tracer, access_log=read.access_log)
    totals = OwnTotals(create_registry(core, core.metrics, None), core.statistics)
    await server.start(Services(core, KeyRing(keys) if keys else None, reloader, reporter, totals))
    try:
        async with grpc.aio.insecure_channel(server.address, UNLIMITED) as channel:
            yield Served(core, server, channel, GRPCInferenceServiceStub(channel))
    finally:
        await server.stop(0)
        await core.close()


def run(engine: FakeEngine, test: Callable[[Served], Awaitable[T]], **options: Any) -> T:
    """Run a test with a server for it."""

    async def go() -> T:
        async with serving(engine, **options) as served:
            return await asyncio.wait_for(test(served), 60)

    return asyncio.run(go())


def request(
    images: np.ndarray = IMAGES, *, raw: bool = True, model: str = "pair", **fields: Any
) -> messages.ModelInferRequest:
    """A request for images, as bytes or as a list of numbers."""
    asked = messages.ModelInferRequest(model_name=model, **fields)
    tensor = asked.inputs.add(name="images", datatype="FP32", shape=images.shape)
    if raw:
        asked.raw_input_contents.append(images.astype("<f4").tobytes())
    else:
        tensor.contents.fp32_contents.extend(images.ravel().tolist())
    return asked


def logits(response: messages.ModelInferResponse) -> np.ndarray:
    (output,) = response.outputs
    (data,) = response.raw_output_contents
    return np.frombuffer(data, "<f4").reshape(tuple(output.shape))


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"it was answered: {answer}")


def trailers(error: Any) -> dict[str, str]:
    return dict(iter(error.trailing_metadata() or ()))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")
