"""Send requests, again after 503 and on connections that were closing, and translate what goes wrong."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import httpx

from coserve_client.calls import VIA, Call, is_healthy
from coserve_client.errors import InputError, RequestTimeoutError, Route, UnreachableError, translated_errors
from coserve_client.retries import Backoff
from coserve_client.reuse import BROKEN, Attempt

T = TypeVar("T")


class Sender:
    """Sends the requests of a `Client`. Threads may share it.

    Args:
        http: the connections; `close` closes them.
        route: the server and the proxy in front of it, for error messages.
        retries: maximum number of retries after 503.
        retry_seconds: seconds after the start of a call during which retries may start.
    """

    def __init__(self, http: httpx.Client, route: Route, retries: int, retry_seconds: float) -> None:
        self._http = http
        self._route = route
        self._retries = retries
        self._retry_seconds = retry_seconds

    def call(self, call: Call[T]) -> T:
        """Send a call's request, and return what its response contains.

        Raises:
            CoserveError: the call failed.
        """
        backoff = Backoff(self._retries, self._retry_seconds)
        request = call.request(self._http)
        response = self._send(request)
        while (delay := backoff.delay(response)) is not None:
            time.sleep(delay)
            response = self._send(request)
        return call.read(response)

    def probe(self, path: str) -> bool:
        """Return whether a server answers and reports itself, or a model, as healthy.

        Raises:
            RequestTimeoutError: it was not asked, as all connections stayed in use.
        """
        try:
            response = self._send(self._http.build_request("GET", path))
        except (UnreachableError, RequestTimeoutError) as error:
            # No connection became free: the server was not asked.
            if isinstance(error.__cause__, httpx.PoolTimeout):
                raise
            return False
        return is_healthy(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, request: httpx.Request) -> httpx.Response:
        attempt = Attempt()
        request.extensions |= {"trace": attempt.record, VIA: self._route.proxy}
        with _open(self._http), translated_errors(self._route, attempt):
            try:
                response = self._http.send(request)
            except BROKEN:
                if not attempt.met_closing_connection():
                    raise
                response = self._http.send(request)
        _forget_stream(response)
        return response


class AsyncSender:
    """Sends the requests of an `AsyncClient`: `Sender` with `await`, and `aclose` instead of `close`."""

    def __init__(self, http: httpx.AsyncClient, route: Route, retries: int, retry_seconds: float) -> None:
        self._http = http
        self._route = route
        self._retries = retries
        self._retry_seconds = retry_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(self, call: Call[T]) -> T:
        """See `Sender.call`."""
        backoff = Backoff(self._retries, self._retry_seconds)
        request = call.request(self._http)
        response = await self._send(request)
        while (delay := backoff.delay(response)) is not None:
            await asyncio.sleep(delay)
            response = await self._send(request)
        return call.read(response)

    async def probe(self, path: str) -> bool:
        """See `Sender.probe`."""
        try:
            response = await self._send(self._http.build_request("GET", path))
        except (UnreachableError, RequestTimeoutError) as error:
            # No connection became free: the server was not asked.
            if isinstance(error.__cause__, httpx.PoolTimeout):
                raise
            return False
        return is_healthy(response)

    async def aclose(self) -> None:
        """Close the connections.

        Raises:
            InputError: requests were sent in another event loop.
        """
        self._check_loop()
        await self._http.aclose()

    def _check_loop(self) -> None:
        # Connections belong to the loop that opened them; in another one they fail at random.
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if loop is not self._loop:
            raise InputError("an AsyncClient works in one event loop: create one in each")

    async def _send(self, request: httpx.Request) -> httpx.Response:
        self._check_loop()
        attempt = Attempt()
        request.extensions |= {"trace": attempt.arecord, VIA: self._route.proxy}
        with _open(self._http), translated_errors(self._route, attempt):
            try:
                response = await self._http.send(request)
            except BROKEN:
                if not attempt.met_closing_connection():
                    raise
                response = await self._http.send(request)
        _forget_stream(response)
        return response


@contextmanager
def _open(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    """Name the cause of what goes wrong in a closed client.

    Raises:
        InputError: the client is closed, or another thread or task closed it meanwhile.
    """
    if http.is_closed:
        raise InputError("the client is closed; create another")
    try:
        yield
    except (RuntimeError, UnreachableError) as error:
        if http.is_closed:
            raise InputError("the client was closed during a request") from error
        raise


def _forget_stream(response: httpx.Response) -> None:
    # The stream and the response reference each other, which would keep the images in memory until the
    # garbage collector runs. httpx may drop this undocumented attribute.
    with suppress(AttributeError):
        del response.stream
