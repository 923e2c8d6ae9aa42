"""The synchronous client. Everything but the I/O is shared with `AsyncClient`."""

import os
from collections.abc import Iterable, Iterator, Mapping
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
from coserve_client.images import Source, images_in
from coserve_client.many import classify_in_threads, plan_requests
from coserve_client.options import ClassifyOptions
from coserve_client.paths import readiness_path
from coserve_client.replies import EarlyStop, Inference, Metadata, Model, Reply, SetMethod
from coserve_client.retries import check_retries
from coserve_client.sending import Sender

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack


class Client:
    """A synchronous client of a Coserve server. Threads may share it and its open connections.

    Args:
        url: the server's address, with the path prefix if a proxy adds one.
        api_key: key sent with every request; by default the environment variable `COSERVE_API_KEY`, if set.
        verify: PEM file of the certificate authorities to trust for HTTPS, or an `ssl.SSLContext`; by
            default the usual authorities.
        certificate: PEM file of the client's own certificate and key, or a file of each, for servers that
            require one. An `ssl.SSLContext` passed as `verify` must contain it instead.
        timeout: seconds for each of: connecting, receiving more of the response, sending more of the
            request, getting a free connection; or an `httpx.Timeout`. None means no limit.
        retries: maximum number of retries after 503; no other failure is retried.
        retry_seconds: seconds after the start of a call during which retries may start.
        headers: additional headers for every request, such as a proxy's `Authorization`.
        transport: replacement for the network in tests.

    Raises:
        InputError: `url`, the key, a header, a certificate, a timeout or a limit of retrying cannot be used.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        check_retries(retries, retry_seconds)
        connecting = connect(url, api_key, verify, certificate, timeout, headers, use_proxy=transport is None)
        http = httpx.Client(transport=transport, **connecting.requests, **connecting.network)
        self._sender = Sender(http, connecting.route, retries, retry_seconds)

    def classify(
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
        """Classify one or several images in one request.

        Args:
            images: paths, encoded images, files opened in binary mode, or `Image` objects, which add a name.
            model: name of the ensemble; optional if the server has only one or a default.
            version: version of the ensemble; by default the newest.
            top_k: number of classes to return per image.
            member_predictions: whether to return each member's own predictions too.
            coverage: fraction of images whose prediction set is to hold the true class, one of those that
                the ensemble is calibrated for; adds the sets to the results.
            set_method: how sets are made, with `coverage`: "lac", the default, or "raps", whose sets always
                hold the most probable class.
            early_stop: when images need no further member once their answer is confident enough: "off",
                "loaded" (while images wait for the engine) or "always"; by default the server's setting.
            timeout_ms: milliseconds the server may take, if less than its own deadline.

        Raises:
            InputError: there is no image, one cannot be read, an option cannot be sent, or no model can have
                that name or version.
            RejectedError: the server does not accept an image.
            UnknownModelError: the server has no such ensemble.
            InvalidParametersError: the ensemble is not calibrated for the coverage, or to stop early.
            CoserveError: any other failure, as a subclass.
        """
        call = calls.classify(
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
        return self._sender.call(call)

    def classify_many(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 16,
        concurrency: int = 8,
        **options: "Unpack[ClassifyOptions]",
    ) -> Iterator[Outcome]:
        """Classify any number of images in many requests; yield their outcomes in the order of the images.

        At most `concurrency` requests are in memory at a time, including finished ones whose turn has not
        come. Each has at most `batch_size` images and 16 MiB, or one larger image. A rejected image does not
        affect the others.

        Args:
            images: images as for `classify`, consumed as requests need them.
            batch_size: maximum number of images in one request.
            concurrency: maximum number of requests at a time; at most 100, the client's connections.
            options: `model`, `version`, `top_k`, `member_predictions`, `coverage`, `set_method`,
                `early_stop` and `timeout_ms`, as for `classify`.

        Raises:
            InputError: `batch_size` or `concurrency` is not a whole number above 0, an option cannot be
                sent, or `images` is a single image or not iterable; raised by the call itself.
            CoserveError: a failure not specific to one image; raised during iteration, once the requests in
                progress have finished.
        """
        batches, concurrency = plan_requests(images, batch_size, concurrency, options)
        return classify_in_threads(partial(self.classify, **options), batches, concurrency)

    def classify_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        concurrency: int = 8,
        **options: "Unpack[ClassifyOptions]",
    ) -> Iterator[Outcome]:
        """Classify the images in a folder and its subfolders, sorted by path. See `classify_many`.

        Raises:
            InputError: the folder cannot be read.
        """
        return self.classify_many(
            images_in(folder), batch_size=batch_size, concurrency=concurrency, **options
        )

    def infer(
        self,
        model: str,
        images: "ArrayLike",
        *,
        version: str | None = None,
        early_stop: EarlyStop | None = None,
        timeout_ms: float | None = None,
        input_name: str = "images",
    ) -> Inference:
        """Compute the logits of preprocessed images. Requires NumPy.

        Args:
            model: name of the ensemble.
            images: `[N, 3, H, W]`, sent as FP32.
            version: version of the ensemble; by default the newest.
            early_stop: as for `classify`.
            timeout_ms: milliseconds the server may take, if less than its own deadline.
            input_name: name of the model's input, as in `metadata`.

        Raises:
            InputError: `images` is not an array of real numbers, NumPy is not installed, an option cannot be
                sent, or no model can have that name or version.
            RejectedError: the images do not have the shape of the model's input, or the ensemble is not
                calibrated to stop early.
            CoserveError: any other failure, as a subclass.
        """
        return self._sender.call(calls.infer(model, images, version, early_stop, timeout_ms, input_name))

    def models(self) -> tuple[Model, ...]:
        """List the ensembles that the server offers."""
        return self._sender.call(calls.models())

    def default_model(self) -> Model | None:
        """Describe the ensemble that answers requests that name none; None if requests must name one."""
        return self._sender.call(calls.default_model())

    def model(self, name: str, *, version: str | None = None) -> Model:
        """Describe one ensemble.

        Raises:
            InputError: no model can have that name or version.
            UnknownModelError: the server has no ensemble with that name or version.
        """
        return self._sender.call(calls.model(name, version))

    def metadata(self, model: str, *, version: str | None = None) -> Metadata:
        """Describe the tensors of an ensemble, or of a member if the server offers members.

        Raises:
            InputError: no model can have that name or version.
            UnknownModelError: the server has no ensemble with that name or version.
        """
        return self._sender.call(calls.metadata(model, version))

    def live(self) -> bool:
        """Return whether a server answers at the address.

        Raises:
            UnauthenticatedError, ForbiddenError: a proxy requires a key, or does not allow the call.
            RequestTimeoutError: all of this client's connections stayed in use, so the server was not asked.
        """
        return self._sender.probe("/healthz")

    def ready(self, model: str | None = None, *, version: str | None = None) -> bool:
        """Return whether the server answers and enough members run in every ensemble, or in the given one.

        Raises:
            InputError: no model can have that name or version, or there is a version without a name.
            UnauthenticatedError, ForbiddenError: the server or a proxy requires a key, or does not allow the
                call.
            RequestTimeoutError: all of this client's connections stayed in use, so the server was not asked.
        """
        return self._sender.probe(readiness_path(model, version))

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
