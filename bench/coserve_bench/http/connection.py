"""A kept-alive HTTP/1.1 connection, light enough for a load generator: httptools parses, asyncio sends.

A full client takes five times as much processor time per request. On a shared machine the server would lack
that time, and it would count as the server's.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools

from coserve_client.connecting import Certificate, tls_context


@dataclass(frozen=True)
class Reply:
    """A complete response."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Address:
    """The address to connect to.

    Attributes:
        tls: TLS context; None for plain HTTP.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None

    @classmethod
    def from_url(cls, url: str, verify: Path | None = None, certificate: Certificate = None) -> "Address":
        """Return the address of an `http:` or `https:` URL.

        Args:
            verify: PEM file of trusted authorities; None for the client's own.
            certificate: PEM file of the client's certificate and key, or a file of each; None for none.

        Raises:
            InputError: the authorities or the certificate cannot be loaded.
        """
        parts = urlsplit(url)
        tls = tls_context(verify, certificate, secure=True) if parts.scheme == "https" else None
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)


def post(url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the bytes of a POST request (RFC 9112)."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc, **headers, "Content-Length": str(len(body))}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time and can be used again unless it is `closed`."""

    def __init__(self) -> None:
        self.closed = False
        self._reply: asyncio.Future[Reply] | None = None
        self._body: list[bytes] = []

    @classmethod
    async def open(cls, address: Address) -> "Connection":
        """Connect.

        Raises:
            OSError: the connection is refused, or the server's certificate is not trusted.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, address.host, address.port, ssl=address.tls)
        return connection

    async def send(self, request: bytes, timeout_s: float) -> Reply:
        """Send a request and wait for the complete response; an error closes the connection.

        Raises:
            TimeoutError: the response did not arrive in time.
            ConnectionError: the connection broke, or the response is not HTTP.
        """
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        timer = loop.call_later(timeout_s, self._fail, TimeoutError())
        try:
            return await self._reply
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """Abort the connection."""
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        # uvloop's transport has the methods without the type.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._reply is None or self._reply.done():
            # Without a request, later responses could not be told from these bytes.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the response is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self.closed = True
        self._fail(ConnectionError(str(error or "closed before the response was complete")))

    def on_message_begin(self) -> None:
        """Called by httptools."""
        self._body.clear()

    def on_body(self, part: bytes) -> None:
        """Called by httptools."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Called by httptools."""
        status = self._parser.get_status_code()
        if status < 200 or self._reply is None or self._reply.done():
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._reply.set_result(Reply(status, b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
