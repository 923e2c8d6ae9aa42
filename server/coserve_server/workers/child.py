"""A worker: serves connections that the parent hands over, with a part of the machine."""

import asyncio
import logging
import math
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from prometheus_client import Metric

from coserve_server.core import Core, open_core
from coserve_server.errors import StartupError
from coserve_server.machine.cores import pin_thread
from coserve_server.machine.interpreter import freeze_objects, tune_interpreter
from coserve_server.observability import logs
from coserve_server.observability.statistics import Statistics
from coserve_server.security.tls import server_context
from coserve_server.serving import configure, open_grpc, start_grpc, summarize
from coserve_server.settings import Settings
from coserve_server.transport.drain import grace_s
from coserve_server.transport.handed import HandedServer
from coserve_server.workers.channel import Channel, GoneError, receive_frame
from coserve_server.workers.launch import Assignment
from coserve_server.workers.summing import Condition, Snapshot

logger = logging.getLogger(__name__)

PUSH_S = 0.25
"""Interval at which the parent hears of faults and counts: so much is lost of a worker that is killed."""


def main(control: int, connections: int) -> None:
    """Serve until the parent says stop, and end the process.

    Args:
        control: file descriptor of the socket for calls.
        connections: file descriptor of the socket over which connections arrive.
    """
    end = socket.socket(fileno=control)
    threading.Thread(target=_end_with_parent, args=(control,), name="parent", daemon=True).start()
    # The parent stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 1
    try:
        assignment: Assignment = receive_frame(end)
        settings = Settings.model_construct(**assignment.settings)  # type: ignore[arg-type]  # checked before
        logs.configure(settings, assignment.number)
        # These may have been taken from the container meanwhile, which must not prevent a replacement.
        if assignment.part.cpus is not None:
            pin_thread(assignment.part.cpus)
        tune_interpreter()
        status = _run(_Worker(assignment, settings, end, socket.socket(fileno=connections)))
    except EOFError:
        pass
    except Exception:
        logger.exception("the worker failed")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        # No library's thread may keep the process.
        os._exit(status)


def _end_with_parent(control: int) -> None:
    """End the process when the parent is gone, however busy the event loop is."""
    poll = select.poll()
    # Only the end of the connection.
    poll.register(control, 0)
    poll.poll()
    os._exit(1)


def _run(worker: "_Worker") -> int:
    # Only Windows has none, and no workers either.
    from uvloop import run

    return run(worker.serve())


class _Worker:
    """The worker's end of the calls, and its server."""

    def __init__(
        self, assignment: Assignment, settings: Settings, control: socket.socket, connections: socket.socket
    ) -> None:
        self._assignment = assignment
        self._settings = settings
        self._connections = connections
        self._server: HandedServer | None = None
        self._own: Core | None = None
        self._leaves = False
        self._drains = False
        self._told: Condition | None = None
        self._channel = Channel(
            control,
            {
                "report": self._report,
                "load": self._load,
                "unload": self._unload,
                "drain": self._drain,
                "stop": lambda: self._stop(0),
                "connections": self._count_connections,
                "shed": self._shed,
                "elsewhere": self._note_elsewhere,
            },
        )

    async def serve(self) -> int:
        """Serve until told to stop; return the process's status."""
        await self._channel.open()
        answering = asyncio.ensure_future(self._channel.run())
        try:
            part = self._assignment.part
            unloaded = self._assignment.unloaded
            async with open_core(self._settings, part.cores, self._take_turn, unloaded) as core:
                self._own = core
                await self._serve(core)
                with suppress(GoneError):
                    await self._channel.call("count", await self._snapshot())
        except StartupError as error:
            await self._channel.call("fail", str(error))
            return 1
        finally:
            answering.cancel()
        return 0

    async def _serve(self, own: Core) -> None:
        control = _Control(self._channel) if own.control is not None else None
        core = replace(own, control=control, totals=_Totals(self._channel))
        settings = self._settings
        tls = server_context(settings)
        # Bound last: the system divides connections among all that listen.
        async with open_grpc(settings, self._assignment.grpc_address) as grpc:
            await start_grpc(grpc, core)
            self._server = HandedServer(
                configure(settings, core, tls),
                self._connections,
                lambda opened, received: self._channel.notify("load", opened, received),
                handshake_s=settings.head_timeout_ms / 1000,
                drain_delay_s=0,
                handle_signals=False,
                started=self._begin,
                # The parent says when the whole server does.
                draining=lambda: None,
                closing=(lambda: grpc.stop(grace_s(settings))) if grpc else None,
            )
            pushing = asyncio.ensure_future(self._push())
            try:
                await self._server.serve()
            finally:
                pushing.cancel()

    def _begin(self) -> None:
        """Tell the parent that connections are welcome."""
        assert self._own is not None
        freeze_objects()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._leave)
        address = self._assignment.grpc_address
        summary = summarize(self._own.classifier, self._assignment.url, address)
        self._channel.notify("ready", summary)

    def _leave(self) -> None:
        """Ask the parent for a replacement, and stop once no connections come any more; called by SIGTERM."""
        # The signal went to all processes: the parent, which has it too, ends them in order.
        if self._drains:
            return
        if self._leaves:
            os._exit(128 + signal.SIGTERM)
        self._leaves = True
        self._channel.notify("leave")
        self._stop(math.inf)

    def _stop(self, delay_s: float) -> None:
        if self._server is not None:
            self._server.stop(delay_s)

    def _drain(self) -> None:
        """Report that the server is stopping, and serve until the parent says stop."""
        self._drains = True
        if self._own is not None:
            self._own.classifier.catalogue.drain()
        self._stop(math.inf)

    async def _push(self) -> None:
        """Tell the parent what is served, and of counts, in case that this process is killed."""
        assert self._own is not None
        counted = 0
        while True:
            self._tell_condition(self._own)
            requests = sum(self._own.classifier.metrics.requests.values())
            if requests != counted:
                counted = requests
                await self._report()
            await asyncio.sleep(PUSH_S)

    def _tell_condition(self, own: Core) -> None:
        """Tell the parent what is served, if that has changed."""
        catalogue = own.classifier.catalogue
        served = {name: [one.version for one in catalogue.versions(name)] for name in catalogue.ensembles}
        condition = Condition(
            catalogue.own_faults(), served, dict(catalogue.not_served), dict(catalogue.attempts)
        )
        if condition != self._told:
            self._told = condition
            self._channel.notify("state", condition)

    async def _report(self) -> None:
        """Tell the parent what this process has counted; as a result, it could arrive out of turn."""
        self._channel.notify("count", await self._snapshot())

    async def _snapshot(self) -> bytes:
        """Return what this process has counted, pickled once for both sides."""
        if self._own is None:
            return pickle.dumps(Snapshot())
        totals = self._own.totals
        return pickle.dumps(Snapshot(list(await totals.collect()), await totals.statistics()))

    async def _load(self, name: str) -> None:
        if self._own is not None and self._own.control is not None:
            try:
                await self._own.control.load(name)
            finally:
                # Before the result: once the parent has all results, what is still not served is a fault.
                self._tell_condition(self._own)

    async def _unload(self, name: str) -> None:
        if self._own is not None and self._own.control is not None:
            await self._own.control.unload(name)

    def _count_connections(self) -> tuple[int, int]:
        return (0, 0) if self._server is None else self._server.count()

    def _shed(self, count: int) -> None:
        if self._server is not None:
            self._server.shed(count)

    @asynccontextmanager
    async def _take_turn(self) -> AsyncIterator[None]:
        """Wait until no other worker loads."""
        await self._channel.call("take_turn")
        try:
            yield
        finally:
            self._channel.notify("end_turn")

    def _note_elsewhere(self, faults: Sequence[str]) -> None:
        if self._own is not None:
            self._own.classifier.catalogue.elsewhere = faults


class _Control:
    """Loads and unloads ensembles in all workers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def load(self, name: str) -> None:
        """Serve an ensemble as its files are now; see `RepositoryControl`."""
        await self._channel.call("load_everywhere", name)

    async def unload(self, name: str) -> None:
        """Stop serving an ensemble; see `RepositoryControl`."""
        await self._channel.call("unload_everywhere", name)


class _Totals:
    """What all workers have counted."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def collect(self) -> Sequence[Metric]:
        """Return the metrics, in Prometheus' data model."""
        return (await self._sum()).metrics

    async def statistics(self) -> Statistics:
        """Return the counters of all models; they may not be changed."""
        return (await self._sum()).statistics

    async def _sum(self) -> Snapshot:
        with suppress(GoneError):
            snapshot: Snapshot = await self._channel.call("total")
            return snapshot
        return Snapshot()
