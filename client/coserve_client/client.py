"""The clients: all that is I/O, and nothing else."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TypeVar

import httpx

from coserve_client import calls
from coserve_client.calls import Call
from coserve_client.errors import RequestTimeoutError, UnreachableError, translated
from coserve_client.images import Source
from coserve_client.replies import Model, Reply
from coserve_client.retries import Attempts

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=60.0)
# None means the client's own transport: an environment's HTTP_PROXY cannot reach this machine's loopback.
LOOPBACK = {"all://127.0.0.1": None, "all://[::1]": None, "all://localhost": None}


class Client:
    """A Coserve server, called synchronously; connections are kept open and shared between threads.

    Args:
        url: the server's address, with a path prefix where a proxy adds one.
        timeout: seconds to connect, to wait for more of the answer, to send more of the request and to wait
            for a free connection.
        retries: how often a call is repeated after 503; no other failure is retried.
        retry_seconds: no retry starts later than this after the call began.
        headers: sent with every request, such as a proxy's `Authorization`.
        transport: replaces the network, for tests.

    Raises:
        InputError: `url` is not an HTTP address.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        retries: int = 3,
        retry_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = calls.checked_url(url)
        self._retries, self._retry_seconds = retries, retry_seconds
        self._http = httpx.Client(
            base_url=url, timeout=timeout, headers=headers, transport=transport, mounts=LOOPBACK
        )

    def classify(
        self,
        images: Source | Iterable[Source],
        *,
        model: str | None = None,
        top_k: int = 5,
        member_predictions: bool = False,
    ) -> Reply:
        """Classify one or several images in one request.

        Args:
            images: paths, encoded images, files opened in binary mode, or `Image`s to name them.
            model: the ensemble; may be left out where the server has one or a default.
            top_k: how many classes to return per image.
            member_predictions: whether to return each member's own predictions too.

        Raises:
            InputError: there is no image, or one cannot be read.
            RejectedError: the server does not take an image.
            UnknownModelError: no such ensemble.
            CoserveError: any other failure, by its subclass.
        """
        return self._call(calls.classify(images, model, top_k, member_predictions))

    def models(self) -> tuple[Model, ...]:
        """List the ensembles served."""
        return self._call(calls.models())

    def model(self, name: str) -> Model:
        """Describe one ensemble.

        Raises:
            UnknownModelError: the server has none of that name.
        """
        return self._call(calls.model(name))

    def live(self) -> bool:
        """Whether a server answers at the address."""
        return self._probe("/healthz")

    def ready(self) -> bool:
        """Whether a server answers and every ensemble has enough members running."""
        return self._probe("/readyz")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, call: Call[T]) -> T:
        attempts = Attempts(self._retries, self._retry_seconds)
        request = call.request(self._http)
        response = self._send(request)
        while (wait := attempts.wait(response)) is not None:
            time.sleep(wait)
            response = self._send(request)
        return call.read(response)

    def _send(self, request: httpx.Request) -> httpx.Response:
        with translated(self._url):
            return self._http.send(request)

    def _probe(self, path: str) -> bool:
        try:
            return self._send(self._http.build_request("GET", path)).is_success
        except (UnreachableError, RequestTimeoutError):
            return False


class AsyncClient:
    """A Coserve server, called asynchronously: `Client` with `await`, and `aclose` for `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        retries: int = 3,
        retry_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = calls.checked_url(url)
        self._retries, self._retry_seconds = retries, retry_seconds
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout, headers=headers, transport=transport, mounts=LOOPBACK
        )

    async def classify(
        self,
        images: Source | Iterable[Source],
        *,
        model: str | None = None,
        top_k: int = 5,
        member_predictions: bool = False,
    ) -> Reply:
        """See `Client.classify`; files are read in a thread."""
        call = await asyncio.to_thread(calls.classify, images, model, top_k, member_predictions)
        return await self._call(call)

    async def models(self) -> tuple[Model, ...]:
        """See `Client.models`."""
        return await self._call(calls.models())

    async def model(self, name: str) -> Model:
        """See `Client.model`."""
        return await self._call(calls.model(name))

    async def live(self) -> bool:
        """See `Client.live`."""
        return await self._probe("/healthz")

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._probe("/readyz")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _call(self, call: Call[T]) -> T:
        attempts = Attempts(self._retries, self._retry_seconds)
        request = call.request(self._http)
        response = await self._send(request)
        while (wait := attempts.wait(response)) is not None:
            await asyncio.sleep(wait)
            response = await self._send(request)
        return call.read(response)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        with translated(self._url):
            return await self._http.send(request)

    async def _probe(self, path: str) -> bool:
        try:
            return (await self._send(self._http.build_request("GET", path))).is_success
        except (UnreachableError, RequestTimeoutError):
            return False
