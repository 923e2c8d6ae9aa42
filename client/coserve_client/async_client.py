"""The asynchronous client. Everything but the I/O is shared with `Client`."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import httpx

from coserve_client import calls
from coserve_client.batching import Outcome
from coserve_client.connecting import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    Certificate,
    Timeout,
    Verify,
    connect,
)
from coserve_client.duplex import DuplexTransport
from coserve_client.images import Source, images_in
from coserve_client.many import classify_in_tasks, plan_requests
from coserve_client.options import ClassifyOptions
from coserve_client.paths import readiness_path
from coserve_client.replies import EarlyStop, Inference, Metadata, Model, Reply, SetMethod
from coserve_client.retries import check_retries
from coserve_client.sending import AsyncSender

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack


class AsyncClient:
    """An asynchronous client of a Coserve server: `Client` with `await`, and `aclose` instead of `close`.

    It works in one event loop, that of its first request; in another one it raises `InputError`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        verify: Verify = None,
        certificate: Certificate = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        retries: int = 3,
        retry_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        check_retries(retries, retry_seconds)
        connecting = connect(url, api_key, verify, certificate, timeout, headers, use_proxy=transport is None)
        network = transport or DuplexTransport(**connecting.network)
        http = httpx.AsyncClient(transport=network, **connecting.requests)
        self._sender = AsyncSender(http, connecting.route, retries, retry_seconds)

    async def classify(
        self,
        images: Source | Iterable[Source],
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int = 5,
        member_predictions: bool = False,
        coverage: float | None = None,
        set_method: SetMethod | None = None,
        early_stop: EarlyStop | None = None,
        timeout_ms: float | None = None,
    ) -> Reply:
        """See `Client.classify`. Files are read in a thread."""
        call = await asyncio.to_thread(
            calls.classify,
            images,
            model=model,
            version=version,
            top_k=top_k,
            member_predictions=member_predictions,
            coverage=coverage,
            set_method=set_method,
            early_stop=early_stop,
            timeout_ms=timeout_ms,
        )
        return await self._sender.call(call)

    def classify_many(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 16,
        concurrency: int = 8,
        **options: "Unpack[ClassifyOptions]",
    ) -> AsyncIterator[Outcome]:
        """See `Client.classify_many`. Requests in progress are cancelled if the iteration ends early.

        `images` is consumed in threads, one image after the other, so it may block.
        """
        batches, concurrency = plan_requests(images, batch_size, concurrency, options)
        return classify_in_tasks(partial(self.classify, **options), batches, concurrency)

    def classify_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        concurrency: int = 8,
        **options: "Unpack[ClassifyOptions]",
    ) -> AsyncIterator[Outcome]:
        """See `Client.classify_folder`."""
        return self.classify_many(
            images_in(folder), batch_size=batch_size, concurrency=concurrency, **options
        )

    async def infer(
        self,
        model: str,
        images: "ArrayLike",
        *,
        version: str | None = None,
        early_stop: EarlyStop | None = None,
        timeout_ms: float | None = None,
        input_name: str = "images",
    ) -> Inference:
        """See `Client.infer`. The images are converted in a thread."""
        call = await asyncio.to_thread(
            calls.infer, model, images, version, early_stop, timeout_ms, input_name
        )
        return await self._sender.call(call)

    async def models(self) -> tuple[Model, ...]:
        """See `Client.models`."""
        return await self._sender.call(calls.models())

    async def default_model(self) -> Model | None:
        """See `Client.default_model`."""
        return await self._sender.call(calls.default_model())

    async def model(self, name: str, *, version: str | None = None) -> Model:
        """See `Client.model`."""
        return await self._sender.call(calls.model(name, version))

    async def metadata(self, model: str, *, version: str | None = None) -> Metadata:
        """See `Client.metadata`."""
        return await self._sender.call(calls.metadata(model, version))

    async def live(self) -> bool:
        """See `Client.live`."""
        return await self._sender.probe("/healthz")

    async def ready(self, model: str | None = None, *, version: str | None = None) -> bool:
        """See `Client.ready`."""
        return await self._sender.probe(readiness_path(model, version))

    async def aclose(self) -> None:
        """Close the connections.

        Raises:
            InputError: requests were sent in another event loop.
        """
        await self._sender.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
