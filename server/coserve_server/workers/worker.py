"""The parent's view of one worker."""

import asyncio
import logging
import pickle
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from coserve_server.errors import StartupError
from coserve_server.machine.threads import call_on_thread
from coserve_server.transport.handed import TAKEN
from coserve_server.workers.channel import Channel, GoneError
from coserve_server.workers.launch import Assignment, describe_status, launch
from coserve_server.workers.summing import Condition, Snapshot

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""Time for a worker to tell what it has counted; a busy one is counted as it was before."""
BEAT_S = 5.0
"""Interval of calls that a worker must answer, and the time that it has for each."""
MAX_MISSED_BEATS = 6
"""Calls in turn without an answer after which a worker is killed. Not a time: after a pause of all processes,
only one call is late."""
FULL_S = 1.0
"""Time without further connections for a worker that may have no more open files."""


class State(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    """It has asked for a replacement; until then, or with the whole server, it could take connections."""
    ENDING = "ending"
    """It was told to stop, or has ended."""


class Worker:
    """A worker process.

    Attributes:
        number: its number, from 1; a replacement has the same.
        state: whether it takes connections (READY only).
        summary: what it serves, for people; empty before it is ready.
        condition: what it serves, and why it cannot answer.
        ended: the process's status, once it has ended.
        is_late: whether it has not answered the last call that it must answer.
        left: set once it takes no more connections: it has ended, or will.
        missed: by ensemble, `load` or `unload`: what clients asked for while it started.
    """

    def __init__(self, assignment: Assignment, handlers: Mapping[str, Callable[..., Any]]) -> None:
        """Start the process.

        Args:
            handlers: what the worker may call besides its reports; the first argument is the worker. Besides,
                `changed`, called when faults may have, and `returned`, with connections it could not take.

        Raises:
            StartupError: the system starts no more processes or threads.
        """
        self.number = assignment.number
        self.state = State.STARTING
        self.summary = ""
        self.is_late = False
        self.condition = Condition()
        self.left = asyncio.Event()
        self.missed: dict[str, str] = {}
        self._counted = pickle.dumps(Snapshot())
        """Its counts as it sent them: they arrive several times a second, and are seldom read."""
        others = dict(handlers)
        self._changed = others.pop("changed")
        self._returned = others.pop("returned")
        self._full_until = 0.0
        self._handed = 0
        self._kept: deque[socket.socket] = deque()
        self._open = 0
        self._received = 0
        self._is_silent = False
        self._drains = False
        self._tasks: list[asyncio.Task[None]] = []
        try:
            self._launched = launch(assignment)
        except OSError as error:
            raise StartupError(f"worker {self.number} cannot be started: {error.strerror}") from error
        try:
            self.ended = call_on_thread(self._launched.process.wait, f"worker {self.number}")
        except RuntimeError as error:
            # It ends when it notices.
            self._launched.control.close()
            self.inbox.close()
            raise StartupError(f"worker {self.number} cannot be started: {error}") from error
        self.ended.add_done_callback(lambda _: self._take_no_more())
        self._told: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        own: dict[str, Callable[..., Any]] = {
            "ready": self._note_ready,
            "fail": self._note_failure,
            "leave": self._note_leaving,
            "state": self._note_condition,
            "load": self._note_load,
            "count": self._note_counts,
        }
        bound = {name: self._bind(function) for name, function in others.items()}
        self.channel = Channel(self._launched.control, {**own, **bound})

    @property
    def connections(self) -> int:
        """Number of open connections a moment ago, those on the way to it included."""
        return self._open + self._handed - self._received

    @property
    def is_full(self) -> bool:
        """Whether it could not take a connection a moment ago."""
        return asyncio.get_running_loop().time() < self._full_until

    @property
    def inbox(self) -> socket.socket:
        """Socket over which it receives connections; `keep` each that was sent."""
        return self._launched.connections

    def keep(self, connection: socket.socket) -> None:
        """Keep a connection that was sent to it until it has arrived."""
        self._handed += 1
        self._kept.append(connection)

    def reclaim(self) -> list[socket.socket]:
        """Return the connections that had not arrived when it ended."""
        asyncio.get_running_loop().remove_reader(self.inbox)
        while self._release():
            pass
        kept = list(self._kept)
        self._kept.clear()
        return kept

    async def start(self) -> None:
        """Wait until it is ready.

        Raises:
            StartupError: it is not usable, or has ended.
        """
        await self.channel.open()
        asyncio.get_running_loop().add_reader(self.inbox, self._release)
        self._tasks.append(asyncio.ensure_future(self.channel.run()))
        both: list[asyncio.Future[Any]] = [self._told, self.ended]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self._told.done():
            raise StartupError(f"worker {self.number} {self.describe_end()} while it started")
        if (fault := self._told.result()) is not None:
            raise StartupError(fault)
        self._tasks.append(asyncio.ensure_future(self._watch()))

    def admit(self) -> None:
        """Let it take connections, unless it has ended."""
        if not self.left.is_set():
            self.state = State.READY
            self._changed()

    def drain(self) -> None:
        """Let it report that the server is stopping, and take connections until then, even if it leaves."""
        self._drains = True
        self.channel.notify("drain")
        if self.state is State.LEAVING:
            self.state = State.READY
            self._changed()

    def stop(self) -> None:
        """Let it end once its requests are answered."""
        self.channel.notify("stop")
        self._take_no_more()

    def describe_end(self) -> str:
        """Return how the process ended."""
        if self._is_silent:
            return f"did not answer for {MAX_MISSED_BEATS * BEAT_S:g} s and was killed"
        return describe_status(self.ended.result())

    async def snapshot(self) -> Snapshot:
        """Return what it has counted, as of now if it answers in time."""
        if self.state is not State.STARTING and not self.ended.done():
            with suppress(GoneError, asyncio.TimeoutError):
                await asyncio.wait_for(self.channel.call("report"), PATIENCE_S)
        return self._read_counts()

    async def count_connections(self) -> int:
        """Return the number of open connections as of now, if it answers."""
        await self._answers(PATIENCE_S)
        return self.connections

    def last_counts(self) -> Snapshot:
        """Return what remains of it after its end."""
        return self._read_counts().counts()

    def kill(self) -> None:
        """End the process at once, if it has not ended."""
        if not self.ended.done():
            self._launched.process.kill()

    async def close(self) -> None:
        """Wait for the end of the process, and free what belongs to it."""
        await asyncio.wait([self.ended])
        for connection in self.reclaim():
            connection.close()
        self.inbox.close()
        if not self._tasks:
            self._launched.control.close()
        await asyncio.gather(*self._tasks)

    def _release(self) -> int:
        """Close this process's copies of connections that have arrived; return how many were answered for."""
        try:
            answers = self.inbox.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            answers = b""
        if not answers:
            asyncio.get_running_loop().remove_reader(self.inbox)
        missed = []
        for answer in answers:
            connection = self._kept.popleft()
            if answer == ord(TAKEN):
                connection.close()
            else:
                missed.append(connection)
        if missed:
            if not self.is_full:
                logger.warning("worker %d may have no more open files (ulimit -n)", self.number)
            self._full_until = asyncio.get_running_loop().time() + FULL_S
            self._returned(missed)
        return len(answers)

    async def _watch(self) -> None:
        """Kill the process if its event loop hangs."""
        missed = 0
        while missed < MAX_MISSED_BEATS:
            self.is_late = not await self._answers(BEAT_S)
            if self.is_late:
                missed += 1
            else:
                missed = 0
                await asyncio.wait([self.ended], timeout=BEAT_S)
            if self.ended.done():
                return
        self._is_silent = True
        self.kill()

    async def _answers(self, timeout_s: float) -> bool:
        """Ask for the number of connections; return whether the worker answered, or has ended."""
        with suppress(GoneError):
            try:
                self._note_load(*await asyncio.wait_for(self.channel.call("connections"), timeout_s))
            except asyncio.TimeoutError:
                return False
        return True

    def _bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(self, *arguments)

    def _note_ready(self, summary: str) -> None:
        self.summary = summary
        if not self._told.done():
            self._told.set_result(None)

    def _note_failure(self, fault: str) -> None:
        if not self._told.done():
            self._told.set_result(fault)

    def _note_leaving(self) -> None:
        # It need not be replaced any more.
        if self._drains:
            return
        self.state = State.LEAVING
        self.left.set()
        self._changed()

    def _take_no_more(self) -> None:
        self.state = State.ENDING
        self.left.set()
        self._changed()

    def _note_condition(self, condition: Condition) -> None:
        self.condition = condition
        self._changed()

    def _note_load(self, opened: int, received: int) -> None:
        self._open = opened
        self._received = received

    def _note_counts(self, data: bytes) -> None:
        self._counted = data

    def _read_counts(self) -> Snapshot:
        snapshot: Snapshot = pickle.loads(self._counted)  # noqa: S301  # from the worker
        return snapshot
