"""The synchronous client: all that is I/O, and nothing else."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import httpx

from coserve_client import calls, streams
from coserve_client.calls import Call, Question
from coserve_client.connecting import DEFAULT_TIMEOUT, DEFAULT_URL, Certificate, Verify, options
from coserve_client.errors import RejectedError, RequestTimeoutError, UnreachableError, translated
from coserve_client.images import Image, Source
from coserve_client.replies import Inference, Metadata, Model, Reply
from coserve_client.retries import Attempts
from coserve_client.streams import Outcome

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

T = TypeVar("T")


class Client:
    """A Coserve server, called synchronously; connections are kept open and shared between threads.

    Args:
        url: the server's address, with a path prefix where a proxy adds one.
        api_key: sent with every request; None for the environment's `COSERVE_API_KEY`, if there is one.
        verify: PEM file of the authorities that may certify an HTTPS server, or an `ssl.SSLContext`;
            None for the usual authorities.
        certificate: PEM file of the client's own certificate and key, or a file of each, for servers that
            ask for it; part of `verify` where that is an `ssl.SSLContext`.
        timeout: seconds to connect, to wait for more of the answer, to send more of the request and to wait
            for a free connection.
        retries: how often a call is repeated after 503; no other failure is retried.
        retry_seconds: no retry starts later than this after the call began.
        headers: sent with every request, such as a proxy's `Authorization`.
        transport: replaces the network, for tests.

    Raises:
        InputError: `url`, the key, a header or the certificates are not usable.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        verify: Verify = None,
        certificate: Certificate = None,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        retries: int = 3,
        retry_seconds: float = 60.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._retries, self._retry_seconds = retries, retry_seconds
        self._http = httpx.Client(
            transport=transport, **options(url, api_key, verify, certificate, timeout, headers)
        )

    def classify(
        self,
        images: Source | Iterable[Source],
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int = 5,
        member_predictions: bool = False,
        timeout_ms: float | None = None,
    ) -> Reply:
        """Classify one or several images in one request.

        Args:
            images: paths, encoded images, files opened in binary mode, or `Image`s to name them.
            model: the ensemble; may be left out where the server has one or a default.
            version: of the ensemble; the newest where left out.
            top_k: how many classes to return per image.
            member_predictions: whether to return each member's own predictions too.
            timeout_ms: milliseconds the server may take; its own deadline where that is shorter.

        Raises:
            InputError: there is no image, or one cannot be read.
            RejectedError: the server does not take an image.
            UnknownModelError: no such ensemble.
            CoserveError: any other failure, by its subclass.
        """
        return self._call(calls.classify(images, model, version, top_k, member_predictions, timeout_ms))

    def classify_many(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 16,
        concurrency: int = 8,
        **question: "Unpack[Question]",
    ) -> Iterator[Outcome]:
        """Classify any number of images in many requests, and give the outcomes in the images' order.

        At most `concurrency` requests of `batch_size` images and 16 MiB are in memory at once, with those
        that wait for an earlier one's answer. An image that is rejected costs itself alone.

        Args:
            images: as for `classify`; taken as the requests need them.
            question: `model`, `version`, `top_k`, `member_predictions` and `timeout_ms`, as for `classify`.

        Raises:
            InputError: `batch_size` or `concurrency` is below 1.
            CoserveError: a failure that says nothing of single images; requests under way are waited for.
        """
        streams.check(batch_size, concurrency)
        pending: deque[Future[list[Outcome]]] = deque()
        threads = ThreadPoolExecutor(concurrency, "coserve-client")
        batches = streams.batches(images, batch_size)
        try:
            while True:
                more = islice(batches, concurrency - len(pending))
                pending.extend(threads.submit(self._outcomes, batch, question) for batch in more)
                if not pending:
                    return
                yield from pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def classify_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        concurrency: int = 8,
        **question: "Unpack[Question]",
    ) -> Iterator[Outcome]:
        """Classify the images of a folder and its subfolders, sorted by path: see `classify_many`.

        Raises:
            InputError: the folder cannot be read.
        """
        return self.classify_many(
            streams.images_in(folder), batch_size=batch_size, concurrency=concurrency, **question
        )

    def infer(
        self,
        model: str,
        images: "ArrayLike",
        *,
        version: str | None = None,
        timeout_ms: float | None = None,
        input_name: str = "images",
    ) -> Inference:
        """Give the logits of images that are preprocessed as the model wants; needs numpy.

        Args:
            images: `[N, 3, H, W]`, sent as FP32.
            input_name: the name of the model's input, as `metadata` has it.

        Raises:
            InputError: they are no array of real numbers, or numpy is not installed.
            RejectedError: the model takes another shape.
            CoserveError: any other failure, by its subclass.
        """
        return self._call(calls.infer(model, images, version, timeout_ms, input_name))

    def models(self) -> tuple[Model, ...]:
        """List the ensembles served."""
        return self._call(calls.models())

    def model(self, name: str, *, version: str | None = None) -> Model:
        """Describe one ensemble.

        Raises:
            UnknownModelError: the server has none of that name, or not in that version.
        """
        return self._call(calls.model(name, version))

    def metadata(self, model: str, *, version: str | None = None) -> Metadata:
        """Describe the tensors of an ensemble, or of a member where the server serves these.

        Raises:
            UnknownModelError: the server has none of that name, or not in that version.
        """
        return self._call(calls.metadata(model, version))

    def live(self) -> bool:
        """Whether a server answers at the address."""
        return self._probe("/healthz")

    def ready(self, model: str | None = None, *, version: str | None = None) -> bool:
        """Whether a server answers and every ensemble, or the one named, has enough members running.

        Raises:
            UnauthenticatedError: the server asks for an API key, and the client has none or a wrong one.
        """
        return self._probe(calls.readiness(model, version))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _outcomes(self, batch: list[Source], question: Question) -> list[Outcome]:
        images = streams.read(batch)
        readable = [image for image in images if isinstance(image, Image)]
        return streams.outcomes(batch, images, self._answered(readable, question))

    def _answered(self, images: list[Image], question: Question) -> list[Outcome]:
        if not images:
            return []
        try:
            reply = self.classify(images, **question)
        except RejectedError as error:
            if len(images) == 1:
                # Its traceback holds the image.
                return [Outcome(images[0], error=error.with_traceback(None))]
        else:
            return [
                Outcome(image, result, reply) for image, result in zip(images, reply.results, strict=True)
            ]
        # The server rejects a request as a whole, so each image is asked for alone.
        return [outcome for image in images for outcome in self._answered([image], question)]

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
            response = self._http.send(request)
        # It and the response hold each other, and with them the images until garbage is collected.
        del response.stream
        return response

    def _probe(self, path: str) -> bool:
        try:
            response = self._send(self._http.build_request("GET", path))
        except (UnreachableError, RequestTimeoutError):
            return False
        return calls.healthy(response)
