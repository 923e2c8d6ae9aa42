"""A server that gets hostile calls and connections over gRPC refuses them, serves on, and leaks nothing."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.integration.conftest import Serve, Server
from tests.integration.hostile_frames import BROKEN_CALLS, BROKEN_CONNECTIONS, FLOODS, GOOD, IMAGES
from tests.integration.http2 import PING, START, call, exchange, frame, message
from tests.integration.load import until
from tests.server.api.grpc.calls import METHOD, failure, request
from tests.server.api.grpc.test_wire import BOMBS
from tests.server.onnx_repository import write_repository

LIMIT_MS = 1500
MAX_BYTES = 2_000_000
MAX_CONNECTIONS = 40
NO_RETRY = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory, error_log: Path) -> Iterator[Server]:
    with error_log.open("w") as file:
        yield start(serve, tmp_path_factory, file)


def start(serve: Serve, tmp_path_factory: pytest.TempPathFactory, log: IO[str]) -> Server:
    server = serve(
        write_repository(tmp_path_factory.mktemp("models"), "pair"),
        "--grpc-port",
        "0",
        log=log,
        max_body_bytes=MAX_BYTES,
        max_images=8,
        max_requests=16,
        upload_timeout_ms=LIMIT_MS,
        head_timeout_ms=LIMIT_MS,
        max_connections=MAX_CONNECTIONS,
    )
    answer_good_requests(server, 40)
    return server


def answer_good_requests(server: Server, count: int = 1) -> None:
    with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for _ in range(count):
            response = stub.ModelInfer(GOOD, timeout=30)
            assert list(response.outputs[0].shape) == [2, 4]


@pytest.fixture(scope="module")
def resources(server: Server) -> dict[str, int]:
    """The server's resources before the first hostile call."""
    return held(server)


def held(server: Server) -> dict[str, int]:
    process = psutil.Process(server.process.pid)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return {"bytes": process.memory_info().rss, "peak": int(peak) * 1024, "files": process.num_fds()}


@pytest.fixture(autouse=True)
def goes_on(server: Server, resources: dict[str, int]) -> Iterator[None]:
    """After every test the server answers a good request over gRPC, and its health over HTTP."""
    yield
    answer_good_requests(server)
    with server.http() as http:
        assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("sent", BROKEN_CONNECTIONS)
def test_broken_connections(server: Server, sent: str) -> None:
    exchange(server.grpc, BROKEN_CONNECTIONS[sent])


@pytest.mark.parametrize("sent", FLOODS)
def test_floods(server: Server, sent: str) -> None:
    exchange(server.grpc, FLOODS[sent])


def test_clients_that_ping_all_the_time_are_told_so(server: Server) -> None:
    assert b"too_many_pings" in exchange(server.grpc, START + frame(PING, 0, 0, bytes(8)) * 50)


@pytest.mark.parametrize("sent", BROKEN_CALLS)
def test_broken_calls(server: Server, sent: str) -> None:
    """Each gets an answer or the end of its stream, and the connection's next call is answered."""
    following = call(3, message(request(IMAGES, id="following").SerializeToString()))
    received = exchange(server.grpc, START + BROKEN_CALLS[sent] + following, wanted=b"following")
    assert b"following" in received


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(server: Server, bomb: str) -> None:
    async def go() -> None:
        async with grpc.aio.insecure_channel(server.grpc, NO_RETRY) as channel:
            infer = channel.unary_unary(f"{METHOD}ModelInfer")
            errors = await asyncio.gather(*(failure(infer(BOMBS[bomb])) for _ in range(8)))
            assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}

    asyncio.run(go())


def test_large_messages(server: Server) -> None:
    async def go() -> None:
        async with grpc.aio.insecure_channel(server.grpc, NO_RETRY) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for size, compression in ((MAX_BYTES, None), (60_000_000, grpc.Compression.Gzip)):
                asked = request(IMAGES, id="x" * size)
                error = await failure(stub.ModelInfer(asked, compression=compression))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(go())


def test_streams_that_stay_open(server: Server) -> None:
    """More than are allowed: of inference, of health, of reflection; then all are cancelled."""

    async def go() -> None:
        channels = [
            grpc.aio.insecure_channel(server.grpc, [*NO_RETRY, ("grpc.use_local_subchannel_pool", 1)])
            for _ in range(4)
        ]
        calls: list[Any] = []
        for channel in channels * 30:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            infer = GRPCInferenceServiceStub(channel).ModelStreamInfer()
            reflect = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
            calls += [watch, infer, reflect]
        await asyncio.sleep(1)
        # The limits of these streams are not those of single calls.
        await asyncio.to_thread(answer_good_requests, server)
        for one in calls:
            one.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))

    asyncio.run(go())


def test_clients_that_leave_in_the_middle(server: Server) -> None:
    async def go() -> None:
        async with grpc.aio.insecure_channel(server.grpc, NO_RETRY) as channel:
            stub = GRPCInferenceServiceStub(channel)
            for _ in range(5):
                calls = [stub.ModelInfer(GOOD) for _ in range(20)]
                streams = [stub.ModelStreamInfer(iter([GOOD] * 20)) for _ in range(5)]
                await asyncio.gather(*(stream.read() for stream in streams), return_exceptions=True)
                for one in [*calls, *streams]:
                    one.cancel()

    asyncio.run(go())


def test_uploads_that_do_not_come(server: Server) -> None:
    """They hold all places, for as long as a body may take."""

    async def go() -> None:
        async with grpc.aio.insecure_channel(server.grpc, NO_RETRY) as channel:
            infer = channel.stream_unary(f"{METHOD}ModelInfer")
            errors = await asyncio.gather(*(failure(infer()) for _ in range(16)))
            assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}

    asyncio.run(go())


def test_too_many_connections(server: Server) -> None:
    """Those that say nothing are closed after a while, and others get in again."""

    async def go() -> None:
        host, _, port = server.grpc.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(2 * MAX_CONNECTIONS)]
        for reader, writer in silent:
            await asyncio.wait_for(reader.read(), 30)
            writer.close()

    asyncio.run(go())


def test_nothing_leaks(server: Server, resources: dict[str, int], error_log: Path) -> None:
    """Last: open files as before, and memory nearly so."""
    until(lambda: held(server)["files"] <= resources["files"])
    now = held(server)
    assert now["bytes"] < resources["bytes"] + 60 * 2**20
    assert now["peak"] < resources["peak"] + 150 * 2**20
    assert "Traceback" not in error_log.read_text()
