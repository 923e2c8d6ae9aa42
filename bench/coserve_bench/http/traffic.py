"""Requests of one load: when they are sent, over which connections, and what comes of them."""

import asyncio
import json
import threading
import time
from array import array
from collections.abc import Callable
from itertools import cycle
from random import expovariate
from typing import Any

from coserve_bench.http.connection import Address, Connection, Reply
from coserve_bench.http.loads import UNREACHED, ClosedLoop, Interval, OpenLoop, Run

PAUSE_S = 0.05
"""A user who could not connect waits so long, or the attempts alone would take the machine."""

clock = time.perf_counter


async def closed_loop(traffic: "Traffic", load: ClosedLoop) -> None:
    """Users who ask one request after another."""

    async def user() -> None:
        while (now := clock()) < traffic.ends:
            if not await traffic.ask(now):
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(user() for _ in range(load.concurrency)))


async def open_loop(traffic: "Traffic", load: OpenLoop) -> None:
    """Requests at the times of a Poisson process, whether or not those before are answered."""
    loop, stop, free = asyncio.get_running_loop(), threading.Event(), asyncio.Semaphore(load.connections)
    tasks: set[asyncio.Task[None]] = set()

    async def ask(meant: float) -> None:
        async with free:
            await traffic.ask(meant)

    def start(meant: float) -> None:
        task = asyncio.create_task(ask(meant))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        await asyncio.to_thread(
            _pace, load.rate, traffic.ends, stop, lambda meant: loop.call_soon_threadsafe(start, meant)
        )
        await asyncio.gather(*tasks)
    finally:
        stop.set()
        for task in tasks:
            task.cancel()


def _pace(rate: float, ends: float, stop: threading.Event, start: Callable[[float], object]) -> None:
    """Call at the times of a Poisson process; on a thread, because event loops' timers are 1 ms coarse."""
    meant = clock()
    while (meant := meant + expovariate(rate)) < ends:
        if stop.wait(max(0.0, meant - clock())):
            return
        start(meant)


class Traffic:
    """Requests of one interval: connections, and what came of them.

    Attributes:
        begins, ends: of the time that counts, on `clock`.
    """

    def __init__(self, address: Address, requests: list[bytes], timeout_s: float, interval: Interval) -> None:
        self.run = Run()
        self.begins = clock() + interval.warm_up_s
        self.ends = self.begins + interval.seconds
        self._address, self._requests, self._timeout_s = address, cycle(requests), timeout_s
        self._idle: list[Connection] = []

    async def ask(self, meant: float) -> bool:
        """Send the next request and record what comes of it; False where no connection can be made."""
        sent = clock()
        counts = self.begins <= meant < self.ends
        patience = meant + self._timeout_s - sent
        try:
            connection = await self._connection(patience)
        except OSError as error:
            if counts:
                self._failed(meant, "timeout" if isinstance(error, TimeoutError) else UNREACHED)
            return False
        try:
            reply = await connection.ask(next(self._requests), patience)
        except OSError as error:
            if counts:
                self._failed(meant, "timeout" if isinstance(error, TimeoutError) else "connection broken")
            return True
        done = clock()
        if not connection.closed:
            self._idle.append(connection)
        document = _document(reply)
        good = reply.status == 200 and document is not None
        self.run.completed += good and self.begins <= done < self.ends
        if counts and good:
            self._answered(meant, sent, done, document)
        elif counts:
            self.run.errors[_kind(reply, document)] += 1
        return True

    def close(self) -> None:
        """Drop the connections."""
        for connection in self._idle:
            connection.close()

    async def _connection(self, patience: float) -> Connection:
        """The one used last, so that those a server closes for idleness are never asked; else a new one.

        Raises:
            OSError: there is none; TimeoutError: there is none within `patience` seconds.
        """
        if patience <= 0:
            raise TimeoutError
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        try:
            return await asyncio.wait_for(Connection.open(self._address), patience)
        # Not an OSError before Python 3.11.
        except asyncio.TimeoutError as error:
            raise TimeoutError from error

    def _answered(self, meant: float, sent: float, done: float, document: Any) -> None:
        run = self.run
        run.latency.append((done - meant) * 1000)
        run.round_trip.append((done - sent) * 1000)
        run.late.append((sent - meant) * 1000)
        # Other servers' answers may be lists.
        about = document if isinstance(document, dict) else {}
        run.degraded += bool(about.get("degraded"))
        for name, ms in about.get("timings_ms", {}).items():
            run.stages.setdefault(name, array("d")).append(ms)

    def _failed(self, meant: float, kind: str) -> None:
        self.run.errors[kind] += 1
        if kind == "timeout":
            # Left out it would flatter: it took at least so long.
            self.run.latency.append((clock() - meant) * 1000)


def _document(reply: Reply) -> Any:
    """The answer's JSON; None where it has none."""
    try:
        return json.loads(reply.body)
    except ValueError:
        return None


def _kind(reply: Reply, document: Any) -> str:
    """The status, and the problem document's type where there is one."""
    if reply.status == 200:
        return "200 not JSON"
    kind = str(document.get("type", "")) if isinstance(document, dict) else ""
    return f"{reply.status} {kind.rpartition('/')[2]}".rstrip()
