"""The load generator of `coserve bench http`, with servers that stall, fail or send invalid responses."""

import asyncio
import errno
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from coserve_bench.http.connection import Address, Connection
from coserve_bench.http.generator import Generator
from coserve_bench.http.loads import ClosedLoop, Interval, OpenLoop, Run, Target
from coserve_bench.http.results import STAGES, Distribution, LoadResults
from coserve_bench.http.traffic import Traffic, closed_loop

STALL_S = 0.5
TIMINGS = {"decode": 1, "preprocess": 2, "queue": 3, "inference": 4, "combine": 5, "total": 16}
Answer = Callable[[], bytes | None]


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


OK = http("200 OK", json.dumps({"timings_ms": TIMINGS}))


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Run a server that gives every request this answer; with None it closes the connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                if (reply := answer()) is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    ready = threading.Event()
    loop = asyncio.new_event_loop()
    address = []

    async def run() -> None:
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            address.append(server.sockets[0].getsockname()[1])
            ready.set()
            await stopped.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{address[0]}/"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
        loop.close()


def stall_once(after: int) -> Answer:
    """Stall all requests while request number `after` is answered."""
    answered = 0

    def answer() -> bytes:
        nonlocal answered
        answered += 1
        if answered == after:
            time.sleep(STALL_S)
        return OK

    return answer


def measure(url: str, load: ClosedLoop | OpenLoop, seconds: float = 1.5, **options: float) -> LoadResults:
    results = LoadResults(load)
    with Generator(Target(url, [("image/png", b"1"), ("image/png", b"22")], **options)) as generator:
        results.add(generator.run(load, Interval(0, seconds)))
    return results


def share_above(distribution: Distribution, ms: float) -> float:
    percents = np.arange(0, 100, 0.5)
    return float(np.mean([distribution.percentile(percent) > ms for percent in percents]))


def test_an_open_loop_sees_a_stall_in_every_request_during_it() -> None:
    """The server stalls for a third of the time; requests sent then wait for half of the stall on average."""
    with serving(stall_once(after=40)) as url:
        one = measure(url, OpenLoop(100, connections=1))
    with serving(stall_once(after=40)) as url:
        many = measure(url, OpenLoop(100, connections=100))
    half = STALL_S / 2 * 1000
    for results in (one, many):
        assert results.latency.count > 75, "a stall does not hold requests back"
        assert share_above(results.latency, half) > 0.08
        assert results.latency.max > 0.8 * STALL_S * 1000
    # With one connection, requests during the stall are sent after it: one round trip is slow.
    assert share_above(one.round_trip, half) < 0.04
    assert share_above(many.round_trip, half) > 0.08


def test_a_closed_loop_sees_a_stall_once_per_user() -> None:
    with serving(stall_once(after=40)) as url:
        results = measure(url, ClosedLoop(2))
    assert results.latency.count > 100
    assert share_above(results.latency, STALL_S / 2 * 1000) < 0.04
    assert results.latency.max > 0.8 * STALL_S * 1000


def test_arrivals_are_a_poisson_process_at_the_requested_rate() -> None:
    with serving(lambda: OK) as url:
        results = measure(url, OpenLoop(300), seconds=2)
    assert abs(results.round_trip.count - 600) < 5 * 600**0.5
    assert abs(results.per_second - 300) < 0.3 * 300
    assert not results.errors


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http("503 Service Unavailable", '{"type": "/problems/overloaded"}'), "503 overloaded"),
        (http("500 Internal Server Error", "oh"), "500"),
        (http("200 OK", "oh"), "200 not JSON"),
        (b"oh\r\n\r\n", "connection broken"),
        (None, "connection broken"),
    ],
)
def test_failures_are_counted_by_kind_without_latencies(answer: bytes | None, kind: str) -> None:
    with serving(lambda: answer) as url:
        results = measure(url, ClosedLoop(2), seconds=0.3)
    assert set(results.errors) == {kind}
    assert results.errors[kind] > 1
    assert not results.latency
    assert results.per_second == 0


def test_a_timeout_counts_as_a_latency() -> None:
    with serving(lambda: b"") as url:
        results = measure(url, OpenLoop(50), seconds=0.4, timeout_s=0.3)
    assert set(results.errors) == {"timeout"}
    assert results.latency.count == results.errors["timeout"]
    assert results.latency.percentile(1) > 295
    assert results.round_trip.count == 0


def test_requests_that_wait_too_long_for_a_connection_are_not_sent() -> None:
    """The first request occupies the only connection until it times out; no other waits longer than that."""
    asked = []
    with serving(lambda: asked.append(1) or b"") as url:
        # Requests are a millisecond apart, so many are late when the connection is free again.
        results = measure(url, OpenLoop(1000, connections=1), seconds=0.2, timeout_s=0.4)
    assert set(results.errors) == {"timeout"}
    assert len(asked) < results.errors["timeout"]
    # uvloop counts whole milliseconds.
    assert results.latency.percentile(1) > 395


def test_a_refused_connection_is_counted() -> None:
    with serving(lambda: OK) as url:
        pass
    results = measure(url, ClosedLoop(1), seconds=0.3)
    assert set(results.errors) == {"cannot connect"}


def test_a_connection_that_the_server_closes_is_replaced() -> None:
    reply = OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with serving(lambda: reply) as url:
        results = measure(url, ClosedLoop(2), seconds=0.3)
    assert results.latency.count > 4
    assert not results.errors


def test_responses_of_other_servers_need_no_timings() -> None:
    with serving(lambda: http("200 OK", "[1]")) as url:
        results = measure(url, ClosedLoop(1), seconds=0.3)
    assert results.latency
    assert not results.stages
    assert results.to_json()["overhead_ms"] is None


def test_the_warm_up_is_not_counted() -> None:
    with serving(stall_once(after=1)) as url, Generator(Target(url, [("image/png", b"1")])) as generator:
        run = generator.run(ClosedLoop(1), Interval(STALL_S + 0.1, 0.3))
    assert len(run.latency) > 4
    assert max(run.latency) < STALL_S / 2 * 1000
    assert run.completed == pytest.approx(len(run.latency), abs=2)


def test_the_parts_add_up_to_the_latency() -> None:
    with serving(lambda: OK) as url:
        results = measure(url, ClosedLoop(1), seconds=0.3)
    assert [results.stages[name].mean for name in STAGES] == pytest.approx([1, 2, 3, 4, 5], rel=1e-3)
    assert results.stages["other"].mean == pytest.approx(1, rel=1e-3)


def test_overhead_is_the_round_trip_less_the_inference() -> None:
    results = LoadResults(ClosedLoop(1))
    run = Run(seconds=1, completed=2)
    run.latency.extend([20, 30])
    run.round_trip.extend([20, 30])
    run.late.extend([0, 0])
    run.stages = {name: type(run.latency)("d", [ms, ms]) for name, ms in TIMINGS.items()}
    results.add(run)
    assert results.overhead.mean == pytest.approx(21, rel=1e-3)
    assert results.stages["outside"].mean == pytest.approx(9, rel=1e-3)
    assert sum(stage.mean for name, stage in results.stages.items() if name != "total") == pytest.approx(
        25, rel=1e-3
    )


def test_a_generator_at_its_limit_says_so() -> None:
    results = LoadResults(ClosedLoop(1))
    results.add(Run(completed=100, seconds=1, processor_s=0.7, wall_s=1))
    assert not results.was_bottleneck
    results.add(Run(completed=100, seconds=1, processor_s=1, wall_s=1))
    assert results.was_bottleneck
    assert results.to_json()["generator"]["cores"] == pytest.approx(0.85)
    # The generator left 1.15 of two cores to the server.
    assert results.per_second_without_generator(2) == pytest.approx(100 * 2 / 1.15)


def test_a_distribution_adds_up_over_rounds() -> None:
    distribution = Distribution([1, 2, -1])
    assert not Distribution()
    assert Distribution().to_json() is None
    distribution.add([3.00049, 4])
    assert distribution.count == 5
    assert distribution.percentile(50) == 2
    assert distribution.to_json() == {"mean": 2.0, "p50": 2.0, "p90": 3.6, "p99": 3.96, "max": 4.0}


def test_more_connections_than_the_soft_limit_of_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    few = lowest_free + 20
    with serving(lambda: OK) as url:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            generator = Generator(Target(url, [("image/png", b"1")]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with generator:
            run = generator.run(ClosedLoop(few + 20), Interval(0, 0.5))
    assert not run.errors


def test_running_out_of_files_is_not_blamed_on_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: Address) -> Connection:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Connection, "open", refuse)
    traffic = Traffic(Address("127.0.0.1", 80, None), [b""], 1, Interval(0, 0.2))
    asyncio.run(closed_loop(traffic, ClosedLoop(1)))
    assert set(traffic.run.errors) == {"too many open files in the load generator; raise ulimit -n"}
    assert not traffic.run.unreachable
