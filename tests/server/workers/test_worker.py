import asyncio
import pickle
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily

from coserve_server.errors import StartupError
from coserve_server.machine.cores import Cores
from coserve_server.machine.plan import Slice
from coserve_server.workers import worker
from coserve_server.workers.channel import Channel
from coserve_server.workers.launch import Assignment, Launched
from coserve_server.workers.summing import Snapshot
from coserve_server.workers.worker import MAX_MISSED_BEATS, State, Worker

ASSIGNMENT = Assignment(1, {}, Slice(Cores(1, None), None), "http://localhost", None)
HANDLERS: dict[str, Callable[..., Any]] = {"changed": lambda: None, "returned": lambda _: None}


class Process(subprocess.Popen[bytes]):
    """A process that ends when it is killed, and not before."""

    def __init__(self) -> None:
        self.killed = threading.Event()

    def wait(self, _: float | None = None) -> int:
        self.killed.wait(60)
        return -9

    def kill(self) -> None:
        self.killed.set()

    def __del__(self) -> None:
        """Nothing is to be freed."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Start no processes; return the sockets of the one that would be: the parent's two, and its own."""
    control, own = socket.socketpair()
    inbox, taken = socket.socketpair()
    monkeypatch.setattr(worker, "launch", lambda _: Launched(Process(), control, inbox))
    with own, taken:
        yield [control, inbox, own]


@asynccontextmanager
async def started(
    own: socket.socket, handlers: dict[str, Callable[..., Any]]
) -> AsyncIterator[tuple[Worker, Channel]]:
    """Start a worker that answers calls with these functions."""
    one = Worker(ASSIGNMENT, HANDLERS | {"heard": lambda _: None})
    channel = Channel(own, handlers)
    await channel.open()
    answering = asyncio.ensure_future(channel.run())
    channel.notify("ready", "Coserve")
    await one.start()
    yield one, channel
    one.kill()
    answering.cancel()
    await one.close()


def test_a_worker_that_hangs_is_killed(ends: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.01)
    late = MAX_MISSED_BEATS - 1
    asked = 0

    async def count() -> tuple[int, int]:
        nonlocal asked
        asked += 1
        # It is late for a while, then answers once, then hangs.
        if asked != late + 1:
            await asyncio.Event().wait()
        return (3, 0)

    async def main() -> None:
        async with started(ends[2], {"connections": count}) as (one, _):
            await asyncio.wait_for(asyncio.shield(one.ended), 60)
            assert one.connections == 3
            assert one.describe_end() == "did not answer for 0.06 s and was killed"
        assert asked == late + 1 + MAX_MISSED_BEATS

    asyncio.run(main())


def test_one_that_never_started_is_closed(ends: list[socket.socket]) -> None:
    async def main() -> None:
        one = Worker(ASSIGNMENT, HANDLERS)
        one.kill()
        await one.close()

    asyncio.run(main())
    assert [end.fileno() for end in ends[:2]] == [-1, -1]


def test_a_system_without_threads_is_an_error_in_one_line(
    ends: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker, "call_on_thread", fail)
    with pytest.raises(StartupError, match=r"^worker 1 cannot be started: can't start new thread$"):
        Worker(ASSIGNMENT, HANDLERS)
    # Which ends the process.
    assert [end.fileno() for end in ends[:2]] == [-1, -1]


def test_a_worker_that_leaves_takes_connections_again_when_all_stop(ends: list[socket.socket]) -> None:
    async def main() -> None:
        asked: list[str] = []
        handlers: dict[str, Callable[..., Any]] = {"connections": lambda: (0, 0)}
        async with started(ends[2], handlers | {"drain": lambda: asked.append("drain")}) as (one, channel):
            one.admit()
            channel.notify("leave")
            await one.left.wait()
            assert one.state is State.LEAVING
            one.drain()
            assert one.state is State.READY
            # One that hears of its own signal after the parent changes nothing either.
            channel.notify("leave")
            await channel.call("heard")
            assert one.state is State.READY
            one.stop()
            one.drain()
            assert one.state is State.ENDING
        assert asked

    asyncio.run(main())


def counted(images: int) -> bytes:
    counter = CounterMetricFamily("coserve_images", "Images.", value=images)
    return pickle.dumps(Snapshot([counter]))


def test_counts_are_kept_in_the_order_in_which_they_were_sent(ends: list[socket.socket]) -> None:
    handlers: dict[str, Callable[..., Any]] = {"connections": lambda: (0, 0)}

    async def main() -> None:
        async with started(ends[2], handlers) as (one, channel):
            handlers["report"] = lambda: [channel.notify("count", counted(images)) for images in (1, 2)]
            one.admit()
            snapshot = await one.snapshot()
            assert [sample.value for sample in snapshot.metrics[0].samples] == [2]
            assert one.last_counts().metrics == snapshot.metrics

    asyncio.run(main())
