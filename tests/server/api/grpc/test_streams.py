"""Calls over gRPC in time: admission, deadlines, cancellation, and streams."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc import streams
from coserve_server.api.grpc.calls import Call
from coserve_server.observability.record import Record
from tests.server.api.application import IMAGES, LOGITS
from tests.server.api.grpc.calls import METHOD, Served, failure, logits, request, run, trailers, until
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble
from tests.server.fake_engine import run as member_run


def engine() -> ReadingEngine:
    return ReadingEngine(ensemble(), ensemble(name="other"))


def test_requests_are_let_in_before_they_are_read() -> None:
    async def test(served: Served) -> None:
        first = served.channel.stream_unary(f"{METHOD}ModelInfer")()
        await until(lambda: served.core.in_flight == 1)
        error = await failure(served.stub.ModelInfer(request()))
        assert error.code() is StatusCode.UNAVAILABLE
        assert trailers(error)["retry-after"] == "1"
        assert trailers(error)["grpc-retry-pushback-ms"] == "1000"
        await first.write(request().SerializeToString())
        await first.done_writing()
        assert await first
        assert served.core.in_flight == 0

    run(engine(), test, max_requests=1)


@pytest.mark.parametrize("ends", [True, False])
def test_a_call_without_a_message(ends: bool) -> None:
    async def test(served: Served) -> None:
        call = served.channel.stream_unary(f"{METHOD}ModelInfer")()
        if ends:
            await call.done_writing()
        error = await failure(call)
        said = (error.code(), error.details())
        if ends:
            assert said == (StatusCode.INVALID_ARGUMENT, "the call has no message")
        else:
            assert said == (StatusCode.DEADLINE_EXCEEDED, "the message took longer than 100 ms")
        assert served.core.in_flight == 0

    run(engine(), test, upload_timeout_ms=100)


def test_a_client_that_leaves_stops_its_members() -> None:
    fake = FakeEngine(ensemble(), scripts=[[None, None]])

    async def test(served: Served) -> None:
        call = served.stub.ModelInfer(request(IMAGES[:1]))
        await until(lambda: len(fake.futures) == 2)
        call.cancel()
        await until(lambda: all(future.cancelled() for future in fake.futures))
        await until(lambda: bool(served.core.metrics.requests))
        assert served.core.metrics.requests == {("pair", f"{METHOD}ModelInfer", "CANCELLED"): 1}
        assert served.core.in_flight == 0

    run(fake, test)


def test_a_client_s_deadline_reaches_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have so much less time that the answer without the late ones, or the reason, still arrives.

    Here the members have 59 s less than the client, since a busy machine may need more than the real margin.
    """
    time_left = Call.time_left_ns

    def leave_a_second(call: Call) -> int:
        left = time_left(call)
        assert left is not None
        # gRPC rounds timeouts up on their way: 60 s arrived as 60.1 s.
        assert left < 62_000_000_000
        return min(max(left - 59_000_000_000, 100_000_000), 1_000_000_000)

    monkeypatch.setattr(Call, "time_left_ns", leave_a_second)
    fake = FakeEngine(ensemble(), scripts=[[member_run(0, 1, [1, 2]), None]] * 2)

    async def test(served: Served) -> None:
        response = await served.stub.ModelInfer(request(IMAGES[:1]), timeout=60)
        assert response.parameters["missing"].string_param == "m1: no answer before the deadline"
        assert fake.futures[1].cancelled()

    run(fake, test, min_members=1, deadline_ms=3_600_000)

    async def too_few(served: Served) -> None:
        error = await failure(served.stub.ModelInfer(request(IMAGES[:1]), timeout=60))
        assert error.code() is StatusCode.DEADLINE_EXCEEDED
        assert "1 of 2 members answered, 2 needed (m1: no answer before the deadline)" in str(error.details())

    run(fake, too_few, deadline_ms=3_600_000)


@pytest.mark.parametrize(("left_s", "wanted_ns"), [(None, None), (1, 980_000_000), (0.1, 90_000_000), (0, 1)])
def test_members_get_less_time_than_the_client_waits(left_s: float | None, wanted_ns: int | None) -> None:
    context: Any = SimpleNamespace(time_remaining=lambda: left_s)
    assert Call(context, Record(), "", "", {}, None).time_left_ns() == wanted_ns


async def talk(served: Served, *asked: messages.ModelInferRequest, **options: Any) -> list[Any]:
    """Send all requests on one stream and end it; give what comes back."""
    return [answer async for answer in served.stub.ModelStreamInfer(iter(asked), **options)]


def test_a_stream_answers_in_order_and_goes_on_after_an_error() -> None:
    async def test(served: Served) -> None:
        count = 2 * streams.WINDOW
        asked = [request(IMAGES + n, id=str(n), model="cow" if n % 3 == 1 else "pair") for n in range(count)]
        answers = await talk(served, *asked)
        assert [answer.infer_response.id for answer in answers] == [str(n) for n in range(count)]
        for n, answer in enumerate(answers):
            if n % 3 == 1:
                assert answer.error_message == "model 'cow' is not served; choose from pair, other"
            else:
                np.testing.assert_array_equal(logits(answer.infer_response), LOGITS + n)

    run(engine(), test)


def test_a_stream_s_later_requests_do_not_overtake_a_slow_one() -> None:
    fake = FakeEngine(ensemble(), scripts=[[None, None]])

    async def test(served: Served) -> None:
        call = served.stub.ModelStreamInfer()
        await call.write(request(IMAGES[:1], id="slow"))
        await until(lambda: len(fake.futures) == 2)
        await call.write(request(IMAGES[:1], id="wrong", model="cow"))
        await until(lambda: served.core.metrics.refused.total() == 1)
        for future in fake.futures:
            future.set_result(member_run(0, 1, [1, 2]))
        assert [(await call.read()).infer_response.id for _ in range(2)] == ["slow", "wrong"]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    run(fake, test)


def test_a_stream_reads_no_further_than_its_window() -> None:
    fake = FakeEngine(ensemble(), scripts=[[None, None]] * 20)

    async def test(served: Served) -> None:
        call = served.stub.ModelStreamInfer()
        for _ in range(streams.WINDOW + 2):
            await call.write(request(IMAGES[:1]))
        await until(lambda: served.core.in_flight == streams.WINDOW)
        await asyncio.sleep(0.1)
        assert served.core.in_flight == streams.WINDOW
        call.cancel()
        await until(lambda: served.core.in_flight == 0)
        assert all(future.cancelled() for future in fake.futures)

    run(fake, test, deadline_ms=3_600_000)


def test_errors_end_a_stream_if_asked_to() -> None:
    async def test(served: Served) -> None:
        error = await failure(
            talk(served, request(model="cow"), request(), metadata=[("triton_grpc_error", "true")])
        )
        assert error.code() is StatusCode.NOT_FOUND

    run(engine(), test)


def test_too_many_streams() -> None:
    async def test(served: Served) -> None:
        first = served.stub.ModelStreamInfer()
        await first.write(request())
        assert not (await first.read()).error_message
        error = await failure(talk(served, request()))
        assert error.code() is StatusCode.UNAVAILABLE
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        assert len(await talk(served, request())) == 1

    run(engine(), test, max_requests=1)


def test_stopping_ends_streams_after_their_answers() -> None:
    fake = FakeEngine(ensemble(), scripts=[[None, None]])

    async def test(served: Served) -> None:
        call = served.stub.ModelStreamInfer()
        await call.write(request(IMAGES[:1], id="last"))
        await until(lambda: len(fake.futures) == 2)
        stopping = asyncio.ensure_future(served.server.stop(3600))
        await asyncio.sleep(0.1)
        for future in fake.futures:
            future.set_result(member_run(0, 1, [1, 2]))
        assert (await call.read()).infer_response.id == "last"
        error = await failure(call.read())
        assert (error.code(), error.details()) == (StatusCode.UNAVAILABLE, "the server is stopping")
        # It does not wait for streams without requests.
        await stopping

    run(fake, test)


def test_a_write_to_a_client_that_is_gone_cancels_the_call() -> None:
    async def write(message: object) -> None:
        raise grpc.aio.InternalError

    context: Any = SimpleNamespace(write=write)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Call(context, Record(), "", "", {}, None).write(messages.ModelStreamInferResponse()))


def test_time_spent_reading_a_message_counts_once() -> None:
    """What is left is that of now, but the limit counts from the message's arrival."""
    context: Any = SimpleNamespace(time_remaining=lambda: 1.0)
    record = Record(received_ns=time.perf_counter_ns() - 10**9)
    timeout_ns = Call(context, record, "", "", {}, None).timeout_ns()
    assert timeout_ns is not None
    assert timeout_ns >= 1.98e9
