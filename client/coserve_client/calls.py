"""The calls a client can make, without any I/O: what to send and how to read the answer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote

import httpx

from coserve_client.decoding import decode
from coserve_client.errors import PROBLEMS, InputError, ProblemError, ProtocolError
from coserve_client.images import Source, read_images
from coserve_client.replies import Model, Reply

T = TypeVar("T")
Files = list[tuple[str, tuple[str, bytes]]]

# A proxy before the server gives these answers too, without a problem document.
PROXY_STATUSES = (413, 502, 503, 504)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reader of its answer.

    Attributes:
        parse: makes the result from the answer's JSON.
        files: multipart fields in order, `(field, (file name, bytes))`; bytes can be sent again.
    """

    method: str
    path: str
    parse: Callable[[object], T]
    params: Mapping[str, str | int | bool] = field(default_factory=dict)
    files: Files = field(default_factory=list)

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request with the client's address, headers and timeouts."""
        return http.build_request(self.method, self.path, params=self.params, files=self.files or None)

    def read(self, response: httpx.Response) -> T:
        """Read the final answer.

        Raises:
            ProblemError: the server reports a problem.
            ProtocolError: the answer is not a Coserve server's.
        """
        if response.is_success:
            return self.parse(_document(response))
        raise failure(response)


def classify(
    images: Source | Iterable[Source], model: str | None, top_k: int, member_predictions: bool
) -> Call[Reply]:
    """Classify images; reads them.

    Raises:
        InputError: there is no image, or one cannot be read.
    """
    files: Files = [("files", (image.filename, image.data)) for image in read_images(images)]

    def parse(document: object) -> Reply:
        reply = decode(Reply, document, "reply")
        if len(reply.results) != len(files):
            raise ProtocolError(f"the server answered {len(reply.results)} results for {len(files)} images")
        return reply

    params: dict[str, str | int | bool] = {"top_k": top_k, "member_predictions": member_predictions}
    if model is not None:
        params["model"] = model
    return Call("POST", "/v1/classify", parse, params, files)


def models() -> Call[tuple[Model, ...]]:
    """List the ensembles served."""
    return Call("GET", "/v1/models", lambda document: decode(ModelList, document, "reply").models)


def model(name: str) -> Call[Model]:
    """Describe one ensemble."""
    return Call(
        "GET", f"/v1/models/{quote(name, safe='')}", lambda document: decode(Model, document, "reply")
    )


@dataclass(frozen=True)
class ModelList:
    """The body of `GET /v1/models`."""

    models: tuple[Model, ...]


def checked_url(url: str) -> str:
    """The server's address, as given.

    Raises:
        InputError: it is not an HTTP address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"{url!r} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is not an address such as http://127.0.0.1:8000")
    return url


def failure(response: httpx.Response) -> ProblemError | ProtocolError:
    """The error that an unsuccessful answer stands for."""
    status, kind = response.status_code, response.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() == "application/problem+json":
        document = decode(dict, _document(response), "problem")
    elif status in PROXY_STATUSES:
        document = {"title": f"{_address(response)} answered {response.reason_phrase}"}
    else:
        return _foreign(response)
    return PROBLEMS.get(status, ProblemError)(status, document)


def _document(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError as error:
        raise _foreign(response) from error


def _foreign(response: httpx.Response) -> ProtocolError:
    target = response.headers.get("Location")
    kind = response.headers.get("Content-Type", "no content type")
    what = f"a redirect to {target}" if target else kind
    return ProtocolError(
        f"{_address(response)} answered {response.status_code} with {what}: no answer of a Coserve server"
    )


def _address(response: httpx.Response) -> httpx.URL:
    return response.url.copy_with(query=None)
