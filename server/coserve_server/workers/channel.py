"""Calls in both directions between the parent and a worker, over a socket that only they have.

A frame is four bytes of length and a pickle, which is safe between processes of one program.
"""

import asyncio
import inspect
import itertools
import logging
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from coserve_server.errors import ServerError

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("!I")
_CALL = 0
_RESULT = 1
_ERROR = 2


class GoneError(ServerError):
    """The process at the other end has ended."""


def send_frame(end: socket.socket, value: object) -> None:
    """Send a value, before a channel is made of the socket."""
    data = pickle.dumps(value)
    end.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(end: socket.socket) -> Any:
    """Receive a value sent with `send_frame`.

    Raises:
        EOFError: the other process has ended.
    """
    (length,) = _LENGTH.unpack(_receive(end, _LENGTH.size))
    return pickle.loads(_receive(end, length))  # noqa: S301  # from the parent


def _receive(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = end.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Channel:
    """One end of the connection between the parent and a worker."""

    def __init__(self, end: socket.socket, handlers: Mapping[str, Callable[..., Any]]) -> None:
        """Use a connected socket.

        Args:
            handlers: the functions and coroutine functions that the other process may call, by name.
        """
        self._end = end
        self._handlers = handlers
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Make calls possible; `run` receives their results."""
        self._end.setblocking(False)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._end)

    async def run(self) -> None:
        """Answer calls until the other process closes the connection."""
        assert self._reader is not None
        assert self._writer is not None
        reader = self._reader
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                kind, number, *content = pickle.loads(await reader.readexactly(length))  # noqa: S301
                if kind == _CALL:
                    self._begin(number, *content)
                elif (future := self._waiting.pop(number, None)) is not None and not future.done():
                    (result,) = content
                    if kind == _RESULT:
                        future.set_result(result)
                    else:
                        future.set_exception(result)
        except (OSError, asyncio.IncompleteReadError):
            self._writer.close()
            # Nobody else asks for the error, and asyncio might log it.
            with suppress(OSError):
                await self._writer.wait_closed()
        finally:
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(GoneError("the process has ended"))
            self._waiting.clear()

    async def call(self, name: str, *arguments: object) -> Any:
        """Call a function of the other process, and return its result.

        Raises:
            GoneError: the process has ended.
            ServerError: the function raised it.
        """
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(_CALL, number, name, arguments)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def notify(self, name: str, *arguments: object) -> None:
        """Call a function of the other process without waiting; do nothing if the process has ended."""
        if self._writer is not None and not self._writer.is_closing():
            self._send(_CALL, 0, name, arguments)

    def _send(self, *frame: object) -> None:
        if self._writer is None or self._writer.is_closing():
            raise GoneError("the process has ended")
        data = pickle.dumps(frame)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    def _begin(self, number: int, name: str, arguments: tuple[object, ...]) -> None:
        task = asyncio.ensure_future(self._answer(number, name, arguments))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, name: str, arguments: tuple[object, ...]) -> None:
        kind = _RESULT
        try:
            result = self._handlers[name](*arguments)
            if inspect.isawaitable(result):
                result = await result
        except ServerError as error:
            kind = _ERROR
            result = error
        except Exception as error:
            logger.exception("%s failed", name)
            kind = _ERROR
            result = ServerError(f"{name} failed: {type(error).__name__}")
        if number and self._writer is not None and not self._writer.is_closing():
            self._send(kind, number, result)
