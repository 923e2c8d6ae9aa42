"""Connections of `httpx.AsyncClient` that receive while they send.

A server that is overloaded, or that finds a body too large, may answer and close the connection before it has
read the body. httpx reads the answer once sending fails, but asyncio drops what it has not received by then.
RFC 9112, section 9.5, asks clients to watch for answers while they send. An answer is still lost if the
connection is reset in the microseconds between asyncio's last look for it and the next piece that is sent.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

PIECE_BYTES = 256 * 2**10
EARLY_BYTES = 4096
"""The fewest that httpcore asks for; further ones are read later."""
ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


class DuplexTransport(httpx.AsyncBaseTransport):
    """Replaces `httpx.AsyncHTTPTransport`, whose arguments it takes."""

    def __init__(self, verify: ssl.SSLContext, limits: httpx.Limits, proxy: httpx.Proxy | None) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            proxy=None if proxy is None else _convert_proxy(proxy),
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and receive the whole response."""
        converted = httpcore.Request(
            request.method,
            _convert_url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _converted_errors():
            response = await self._pool.handle_async_request(converted)
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        return httpx.Response(
            response.status, headers=response.headers, content=content, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Backend(httpcore.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return _DuplexStream(await super().connect_tcp(*args, **kwargs))


class _DuplexStream(httpcore.AsyncNetworkStream):
    """A stream that starts to receive before it sends."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._receiving: asyncio.Task[bytes] | None = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._receive(EARLY_BYTES))
            # If sending fails for another reason, nobody asks for the result.
            self._receiving.add_done_callback(lambda task: task.cancelled() or task.exception())
        # The timeout is that of each piece, as in `httpx.Client`.
        for start in range(0, len(buffer), PIECE_BYTES):
            # asyncio looks for what has arrived; the next piece may fail.
            await asyncio.sleep(0)
            with _translated_to(httpcore.WriteError):
                await self._stream.write(buffer[start : start + PIECE_BYTES], timeout)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._receiving is None:
            return await self._receive(max_bytes, timeout)
        done, _ = await asyncio.wait({self._receiving}, timeout=timeout)
        if not done:
            raise httpcore.ReadTimeout
        self._receiving = None
        return done.pop().result()

    async def _receive(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated_to(httpcore.ReadError):
            return await self._stream.read(max_bytes, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return _DuplexStream(await self._stream.start_tls(*args, **kwargs))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _convert_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _convert_proxy(proxy: httpx.Proxy) -> httpcore.Proxy:
    return httpcore.Proxy(_convert_url(proxy.url), proxy.raw_auth, proxy.headers.raw, proxy.ssl_context)


@contextmanager
def _translated_to(kind: type[httpcore.NetworkError]) -> Iterator[None]:
    """Translate the errors of TLS that httpcore overlooks: `ssl.SSLError` and several of anyio's."""
    try:
        yield
    except ERRORS:
        raise
    except Exception as error:
        raise kind(str(error)) from error


@contextmanager
def _converted_errors() -> Iterator[None]:
    """Raise httpcore's errors as httpx's, which have the same names."""
    try:
        yield
    except ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
