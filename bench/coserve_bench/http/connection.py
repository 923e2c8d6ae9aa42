"""One kept-alive HTTP/1.1 connection, as light as a load generator wants it: httptools parses, asyncio sends.

A full client spends five times the processor time of this on a request, time that the server lacks where both
share a machine, and that would count as the server's.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Address:
    """Where to connect.

    Attributes:
        tls: None for plain HTTP.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str, cacert: str | None) -> "Address":
        """Of an `http:` or `https:` URL; `cacert` is a PEM file of authorities, None for the usual ones."""
        parts = urlsplit(url)
        tls = ssl.create_default_context(cafile=cacert) if parts.scheme == "https" else None
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)


def post(url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole POST request as it goes over the connection (RFC 9112)."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc, **headers, "Content-Length": str(len(body))}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Connection(asyncio.Protocol):
    """Sends a request, waits for its answer, and then may be used again unless it is `closed`."""

    def __init__(self) -> None:
        self.closed = False
        self._answer: asyncio.Future[Reply] | None = None
        self._body: list[bytes] = []

    @classmethod
    async def open(cls, address: Address) -> "Connection":
        """Connect.

        Raises:
            OSError: nobody listens there, or its certificate is not trusted.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, address.host, address.port, ssl=address.tls)
        return connection

    async def ask(self, request: bytes, timeout_s: float) -> Reply:
        """Send a request and wait for the whole answer; the connection is closed where there is none.

        Raises:
            TimeoutError: it did not come in time.
            ConnectionError: the connection broke, or the answer is not HTTP.
        """
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        timer = loop.call_later(timeout_s, self._fail, TimeoutError())
        try:
            return await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Drop the connection at once."""
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's call."""
        # uvloop's has the methods, but not the type.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio's call."""
        if self._answer is None or self._answer.done():
            # Bytes that nobody asked for: whatever follows cannot be told from them.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's call."""
        self.closed = True
        self._fail(ConnectionError(str(error or "closed before the answer was complete")))

    def on_message_begin(self) -> None:
        """httptools' call."""
        self._body.clear()

    def on_body(self, part: bytes) -> None:
        """httptools' call."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """httptools' call."""
        status = self._parser.get_status_code()
        if status < 200 or self._answer is None or self._answer.done():
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._answer.set_result(Reply(status, b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
