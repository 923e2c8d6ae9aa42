"""Sends the requests of one load at their times, and records the results."""

import asyncio
import errno
import json
import threading
import time
from array import array
from collections.abc import Callable
from itertools import cycle
from random import expovariate
from typing import Any

from coserve_bench.http.connection import Address, Connection, Reply
from coserve_bench.http.loads import EXHAUSTED, UNREACHED, ClosedLoop, Interval, OpenLoop, Run

PAUSE_S = 0.05
"""How long a user waits after a failed connection, so that attempts do not use up the machine."""

clock = time.perf_counter


async def closed_loop(traffic: "Traffic", load: ClosedLoop) -> None:
    """Let users send one request after another."""

    async def user() -> None:
        while (now := clock()) < traffic.ends:
            if not await traffic.send(now):
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(user() for _ in range(load.concurrency)))


async def open_loop(traffic: "Traffic", load: OpenLoop) -> None:
    """Send requests at the times of a Poisson process, whether or not earlier ones are answered."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    free = asyncio.Semaphore(load.connections)
    tasks: set[asyncio.Task[None]] = set()

    async def send(intended: float) -> None:
        async with free:
            await traffic.send(intended)

    def start(intended: float) -> None:
        task = asyncio.create_task(send(intended))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    try:
        await asyncio.to_thread(
            _pace, load.rate, traffic.ends, stop, lambda intended: loop.call_soon_threadsafe(start, intended)
        )
        await asyncio.gather(*tasks)
    finally:
        stop.set()
        for task in tasks:
            task.cancel()


def _pace(rate: float, ends: float, stop: threading.Event, start: Callable[[float], object]) -> None:
    """Call `start` at the times of a Poisson process, on a thread: an event loop's timers are 1 ms coarse."""
    intended = clock()
    while (intended := intended + expovariate(rate)) < ends:
        if stop.wait(max(0.0, intended - clock())):
            return
        start(intended)


class Traffic:
    """Connections, requests and results of one interval.

    Attributes:
        begins, ends: the time that counts, on `clock`.
    """

    def __init__(self, address: Address, requests: list[bytes], timeout_s: float, interval: Interval) -> None:
        self.run = Run()
        self.begins = clock() + interval.warm_up_s
        self.ends = self.begins + interval.seconds
        self._address = address
        self._requests = cycle(requests)
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []

    async def send(self, intended: float) -> bool:
        """Send the next request and record its result; return False if no connection can be made."""
        sent = clock()
        counts = self.begins <= intended < self.ends
        patience = intended + self._timeout_s - sent
        try:
            connection = await self._connection(patience)
        except OSError as error:
            if counts:
                self._failed(intended, _kind_of_no_connection(error))
            return False
        try:
            reply = await connection.send(next(self._requests), patience)
        except OSError as error:
            if counts:
                self._failed(intended, "timeout" if isinstance(error, TimeoutError) else "connection broken")
            return True
        done = clock()
        if not connection.closed:
            self._idle.append(connection)
        document = _document(reply)
        good = reply.status == 200 and document is not None
        self.run.completed += good and self.begins <= done < self.ends
        if counts and good:
            self._answered(intended, sent, done, document)
        elif counts:
            self.run.errors[_kind(reply, document)] += 1
        return True

    def close(self) -> None:
        """Close the connections."""
        for connection in self._idle:
            connection.close()

    async def _connection(self, patience: float) -> Connection:
        """Return the idle connection that was used last, or else a new one.

        The server may already be closing those that have been idle for longer.

        Raises:
            TimeoutError: no connection was made within `patience` seconds.
            OSError: no connection can be made.
        """
        if patience <= 0:
            raise TimeoutError
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        try:
            return await asyncio.wait_for(Connection.open(self._address), patience)
        # Before Python 3.11 this is not an OSError.
        except asyncio.TimeoutError as error:
            raise TimeoutError from error

    def _answered(self, intended: float, sent: float, done: float, document: Any) -> None:
        run = self.run
        run.latency.append((done - intended) * 1000)
        run.round_trip.append((done - sent) * 1000)
        run.late.append((sent - intended) * 1000)
        # Other servers may respond with a list.
        fields = document if isinstance(document, dict) else {}
        run.degraded += bool(fields.get("degraded"))
        for name, ms in fields.get("timings_ms", {}).items():
            run.stages.setdefault(name, array("d")).append(ms)

    def _failed(self, intended: float, kind: str) -> None:
        self.run.errors[kind] += 1
        if kind == "timeout":
            # The request took at least this long; leaving it out would flatter the server.
            self.run.latency.append((clock() - intended) * 1000)


def _document(reply: Reply) -> Any:
    """Return the response's JSON; None if it is not JSON."""
    try:
        return json.loads(reply.body)
    except ValueError:
        return None


def _kind_of_no_connection(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return EXHAUSTED if error.errno in (errno.EMFILE, errno.ENFILE) else UNREACHED


def _kind(reply: Reply, document: Any) -> str:
    """Return the status, followed by the type of the problem document if there is one."""
    if reply.status == 200:
        return "200 not JSON"
    kind = str(document.get("type", "")) if isinstance(document, dict) else ""
    return f"{reply.status} {kind.rpartition('/')[2]}".rstrip()
