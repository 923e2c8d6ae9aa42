"""One server that everything hostile is sent to over gRPC: it refuses, goes on, and keeps nothing of it."""

import asyncio
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.integration import http2
from tests.integration.conftest import Serve, Server
from tests.integration.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    START,
    WINDOW_UPDATE,
    call,
    exchange,
    frame,
    headers,
    literal,
    message,
)
from tests.server.api.grpc_calls import METHOD, failure, request
from tests.server.api.test_grpc_wire import BOMBS
from tests.server.onnx_repository import write_repository

LIMIT_MS = 1500
MAX_BYTES = 2_000_000
MAX_CONNECTIONS = 40
IMAGES = np.zeros((2, 3, 8, 8), np.float32)
GOOD = request(IMAGES)
BODY = message(GOOD.SerializeToString())
NO_RETRY = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "errors"


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[Server]:
    with log.open("w") as file:
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
    """What the server has before anything hostile."""
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


OPEN = frame(HEADERS, END_HEADERS, 1, headers())
BROKEN_CONNECTIONS: dict[str, bytes] = {
    "nothing": b"",
    "HTTP/1.1": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": ssl.PROTOCOL_TLS_CLIENT.to_bytes(1, "big") + b"\x16\x03\x01\x02\x00" + bytes(512),
    "noise": bytes(range(256)) * 400,
    "half the preface": http2.PREFACE[:9],
    "no settings": http2.PREFACE,
    "half a frame": START + OPEN[:20],
    "a frame of 16 MB": START + frame(DATA, 0, 1, b"x" * 100, length=2**24 - 1),
    "a frame of no known kind": START + frame(200, 255, 1, b"x" * 100),
    "data without a call": START + frame(DATA, 0, 1, b"x"),
    "data for no stream": START + frame(DATA, 0, 0, b"x"),
    "a call on stream 0": START + frame(HEADERS, END_HEADERS, 0, headers()),
    "a call on an even stream": START + frame(HEADERS, END_HEADERS, 2, headers()),
    "streams that count down": START + call(5, BODY) + call(3, BODY),
    "a promise": START + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + headers()),
    "padding beyond the frame": START + frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + headers()),
    "a stream that depends on itself": START + frame(PRIORITY, 0, 1, b"\0\0\0\1\0"),
    "a window beyond 31 bits": START + OPEN + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2,
    "a window of nothing": START + OPEN + frame(WINDOW_UPDATE, 0, 1, bytes(4)),
    "settings of half a length": START + frame(SETTINGS, 0, 0, b"\0" * 5),
    "a tiny window for answers": http2.PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1") + call(1, BODY),
    "goodbye": START + OPEN + frame(GOAWAY, 0, 0, bytes(8)),
    "broken compression of headers": START + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
    "an index that does not exist": START + frame(HEADERS, END_HEADERS, 1, b"\xbf\x80\x01"),
    "a table of 4 GB": START + frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x0f" + headers()),
}
FLOODS: dict[str, bytes] = {
    "settings": START + frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64") * 20_000,
    "pings": START + frame(PING, 0, 0, bytes(8)) * 20_000,
    "empty data": START + OPEN + frame(DATA, 0, 1) * 20_000,
    "priorities": START + b"".join(frame(PRIORITY, 0, 2 * n + 1, bytes(5)) for n in range(10_000)),
    "window updates": START + OPEN + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 20_000,
    "calls that are reset at once": START
    + b"".join(
        frame(HEADERS, END_HEADERS, 2 * n + 1, headers()) + frame(RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08")
        for n in range(5000)
    ),
    "calls without messages": START
    + b"".join(frame(HEADERS, END_HEADERS, 2 * n + 1, headers()) for n in range(2000)),
    "calls that are half closed": START
    + b"".join(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, headers()) for n in range(2000)),
    "headers without end": START
    + frame(HEADERS, 0, 1, headers())
    + frame(CONTINUATION, 0, 1, literal("x", "y" * 1000)) * 2000,
    "empty headers without end": START + frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 20_000,
    # Each reference takes one byte here, and 4000 in the server.
    "references to one long header": START
    + frame(HEADERS, END_HEADERS, 1, b"\x40" + literal("x", "y" * 4000)[1:] + b"\xbe" * 16_000),
}
BROKEN_CALLS: dict[str, bytes] = {
    "no message": call(1, b""),
    "half a prefix": call(1, b"\0\0"),
    "a length beyond the message": call(1, message(b"x" * 10, length=11)),
    "a length of 4 GB": call(1, message(b"x" * 10, length=2**32 - 1)),
    "a length below the message": call(1, message(GOOD.SerializeToString(), length=10)),
    "a compressed message without its method": call(1, message(b"x", flag=1)),
    "an unknown method of compression": call(1, message(b"x", flag=1), grpc_encoding="cow"),
    "broken gzip": call(1, message(b"\x1f\x8b" + b"x" * 50, flag=1), grpc_encoding="gzip"),
    "a flag that does not exist": call(1, message(b"x", flag=255)),
    "a message of noise": call(1, message(os.urandom(5000))),
    "a message of zeros": call(1, message(bytes(100_000))),
    "two messages": call(1, BODY + BODY),
    "many messages": call(1, BODY * 100),
    "another content type": call(1, BODY, content_type="application/json"),
    "no content type": call(1, BODY, content_type=None),
    "GET": call(1, BODY, __method="GET"),
    "no path": call(1, BODY, __path=None),
    "an empty path": call(1, BODY, __path=""),
    "a path of 10 kB": call(1, BODY, __path="/" + "x" * 10_000),
    "a path of line ends": call(1, BODY, __path="/a\r\nb/\0"),
    "an instant": call(1, BODY, grpc_timeout="1n"),
    "no time": call(1, BODY, grpc_timeout="0S"),
    "a time before now": call(1, BODY, grpc_timeout="-5S"),
    "a time without end": call(1, BODY, grpc_timeout="99999999H"),
    "time in words": call(1, BODY, grpc_timeout="soon"),
    "binary metadata that is not": call(1, BODY, x_bin="!!!"),
    "an id of line ends": call(1, BODY, x_request_id="a\nb"),
    "a trace of noise": call(1, BODY, traceparent="00-zz"),
    "a client that ends in the middle": call(1, BODY[:-50], end=0),
}


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


def test_nothing_is_left_of_it(server: Server, resources: dict[str, int], log: Path) -> None:
    """Last: open files as before, and memory nearly so."""
    for _ in range(100):
        now = held(server)
        if now["files"] <= resources["files"]:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert now["files"] <= resources["files"]
    assert now["bytes"] < resources["bytes"] + 60 * 2**20
    assert now["peak"] < resources["peak"] + 150 * 2**20
    assert "Traceback" not in log.read_text()
