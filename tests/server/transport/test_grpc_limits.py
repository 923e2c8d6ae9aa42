"""Limits on gRPC's connections, their age, and messages."""

import asyncio
import gzip

import grpc.aio
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.server.api.application import LOGITS
from tests.server.api.grpc.calls import LOCAL, METHOD, UNLIMITED, Served, failure, logits, request, run
from tests.server.fake_engine import ReadingEngine, ensemble

GOAWAY = 7


def engine() -> ReadingEngine:
    return ReadingEngine(ensemble())


def test_messages_have_the_limit_of_bodies() -> None:
    async def test(served: Served) -> None:
        size = len(request().SerializeToString())
        assert await served.stub.ModelInfer(request())
        error = await failure(served.stub.ModelInfer(request(id="x" * 2000)))
        assert error.code() is StatusCode.RESOURCE_EXHAUSTED
        assert f"larger than max ({size + 2003} vs. 2000)" in str(error.details())
        assert await served.stub.ModelInfer(request()), "on the same connection"

    run(engine(), test, max_body_bytes=2000)


def test_compressed_messages_have_it_before_and_after() -> None:
    async def test(served: Served) -> None:
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert await served.stub.ModelInfer(request(), compression=compression)
            bomb = request(id="x" * 50_000_000)
            assert len(gzip.compress(bomb.SerializeToString())) < 100_000
            error = await failure(served.stub.ModelInfer(bomb, compression=compression))
            assert error.code() is StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "the decompressed body has more than the 100000 bytes allowed"
            stream = served.stub.ModelStreamInfer(iter([bomb, request()]), compression=compression)
            refused, answered = [answer async for answer in stream]
            assert refused.error_message == error.details()
            assert (logits(answered.infer_response) == LOGITS).all()
            long = messages.ModelReadyRequest(name="x" * 70_000)
            error = await failure(served.stub.ModelReady(long, compression=compression))
            assert error.details() == "the decompressed body has more than the 65536 bytes allowed"
        infer = served.channel.unary_unary(f"{METHOD}ModelInfer")
        error = await failure(infer(gzip.compress(request().SerializeToString())[:-9]))
        assert error.details() == "the body's gzip data is cut off"

    run(engine(), test, max_body_bytes=100_000)


def test_connections_and_metadata_have_limits() -> None:
    async def test(served: Served) -> None:
        assert await served.stub.ModelInfer(request())
        async with grpc.aio.insecure_channel(served.server.address, LOCAL) as second:
            live = second.unary_unary(f"{METHOD}ServerLive")
            assert await live(b"")
            async with grpc.aio.insecure_channel(served.server.address, LOCAL) as third:
                error = await failure(third.unary_unary(f"{METHOD}ServerLive")(b"", timeout=5))
                assert error.code() in {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
            error = await failure(live(b"", metadata=[("x", "y" * 20_000)]))
            assert error.code() is StatusCode.RESOURCE_EXHAUSTED
            assert await live(b"")

    run(engine(), test, max_connections=2)


def test_small_calls_take_only_small_messages() -> None:
    async def test(served: Served) -> None:
        async with grpc.aio.insecure_channel(served.server.address, [*UNLIMITED, *LOCAL]) as other:
            ready = GRPCInferenceServiceStub(other).ModelReady
            error = await failure(ready(messages.ModelReadyRequest(name="x" * 70_000)))
            assert error.code() is StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "the message has more than the 65536 bytes allowed"

    run(engine(), test)


def test_a_connection_beyond_its_age_is_told_to_go_away() -> None:
    """It says so in a frame of its own (RFC 9113, 6.8), and lets the calls in progress end."""

    async def test(served: Served) -> None:
        host, _, port = served.server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        empty_settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
        kind = None
        while kind != GOAWAY:
            head = await reader.readexactly(9)
            kind = head[3]
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        assert b"max_age" in payload
        writer.close()

    run(engine(), test, max_connection_age_ms=50)
