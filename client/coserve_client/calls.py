"""The calls a client can make, without any I/O: what to send and how to read the answer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from coserve_client.decoding import decode
from coserve_client.errors import ProblemError, ProtocolError, problem
from coserve_client.images import Source, read_images
from coserve_client.replies import Inference, Metadata, Model, Reply
from coserve_client.tensors import HEADER_LENGTH, read_inference, write_inference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

T = TypeVar("T")
Files = list[tuple[str, tuple[str, bytes]]]


class Question(TypedDict, total=False):
    """What `Client.classify` takes beside the images."""

    model: str | None
    version: str | None
    top_k: int
    member_predictions: bool
    timeout_ms: float | None


# A proxy before the server gives these answers too, without a problem document.
PROXY_STATUSES = (413, 502, 503, 504)
# These are about the key, not about the server.
KEY_STATUSES = (401, 403)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reader of its answer.

    Attributes:
        parse: makes the result from a successful answer.
        files: multipart fields in order, `(field, (file name, bytes))`; bytes can be sent again.
        content: the body, where it is no multipart.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, str | int | bool] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    files: Files = field(default_factory=list)
    content: bytes | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request with the client's address, headers and timeouts."""
        return http.build_request(
            self.method,
            self.path,
            params=self.params,
            headers=self.headers,
            files=self.files or None,
            content=self.content,
        )

    def read(self, response: httpx.Response) -> T:
        """Read the final answer.

        Raises:
            ProblemError: the server reports a problem.
            ProtocolError: the answer is not a Coserve server's.
        """
        if response.is_success:
            return self.parse(response)
        raise failure(response)


def classify(
    images: Source | Iterable[Source],
    model: str | None = None,
    version: str | None = None,
    top_k: int = 5,
    member_predictions: bool = False,
    timeout_ms: float | None = None,
) -> Call[Reply]:
    """Classify images; reads them. The arguments are those of `Client.classify`.

    Raises:
        InputError: there is no image, or one cannot be read.
    """
    files: Files = [("files", (image.filename, image.data)) for image in read_images(images)]

    def parse(response: httpx.Response) -> Reply:
        reply = decode(Reply, document(response), "reply")
        if len(reply.results) != len(files):
            raise ProtocolError(f"the server answered {len(reply.results)} results for {len(files)} images")
        return reply

    params: dict[str, str | int | bool] = {"top_k": top_k, "member_predictions": member_predictions}
    if model is not None:
        params["model"] = model
    if version is not None:
        params["version"] = version
    return Call("POST", "/v1/classify", parse, params, _deadline(timeout_ms), files)


def infer(
    model: str,
    images: "ArrayLike",
    version: str | None = None,
    timeout_ms: float | None = None,
    input_name: str = "images",
) -> Call[Inference]:
    """Give the logits of preprocessed images. The arguments are those of `Client.infer`.

    Raises:
        InputError: they are no array of real numbers, or numpy is not installed.
    """
    content, json_length = write_inference(images, input_name)

    def parse(response: httpx.Response) -> Inference:
        return read_inference(response.content, response.headers.get(HEADER_LENGTH))

    headers = {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(json_length),
        **_deadline(timeout_ms),
    }
    return Call("POST", f"{_v2(model, version)}/infer", parse, headers=headers, content=content)


def metadata(model: str, version: str | None = None) -> Call[Metadata]:
    """Describe a model's tensors."""
    return Call("GET", _v2(model, version), lambda r: decode(Metadata, document(r), "reply"))


def readiness(model: str | None, version: str | None) -> str:
    """The path that says whether the server, or one model, can answer."""
    return "/readyz" if model is None else f"{_v2(model, version)}/ready"


def healthy(response: httpx.Response) -> bool:
    """Read the answer to a question for liveness or readiness.

    Raises:
        UnauthenticatedError: it says only that the key is missing or wrong.
        ForbiddenError: it says only that the key does not allow to ask.
    """
    if response.status_code in KEY_STATUSES:
        raise failure(response)
    return response.is_success


def models() -> Call[tuple[Model, ...]]:
    """List the ensembles served."""
    return Call("GET", "/v1/models", lambda r: decode(ModelList, document(r), "reply").models)


def model(name: str, version: str | None = None) -> Call[Model]:
    """Describe one ensemble, in its newest version or the one named."""
    params: dict[str, str | int | bool] = {} if version is None else {"version": version}
    path = f"/v1/models/{quote(name, safe='')}"
    return Call("GET", path, lambda r: decode(Model, document(r), "reply"), params)


@dataclass(frozen=True)
class ModelList:
    """The body of `GET /v1/models`."""

    models: tuple[Model, ...]


def failure(response: httpx.Response) -> ProblemError | ProtocolError:
    """The error that an unsuccessful answer stands for."""
    status, kind = response.status_code, response.headers.get("Content-Type", "")
    if kind.partition(";")[0].strip().lower() == "application/problem+json":
        return problem(status, decode(dict, document(response), "problem"))
    if text := _v2_error(response):
        return problem(status, {"title": text})
    if status in PROXY_STATUSES:
        return problem(status, {"title": f"{_address(response)} answered {response.reason_phrase}"})
    return _foreign(response)


def _v2_error(response: httpx.Response) -> str | None:
    """The text of an error of the Open Inference Protocol; None where the answer is none."""
    try:
        content = response.json()
    except ValueError:
        return None
    text = content.get("error") if isinstance(content, dict) else None
    return text if isinstance(text, str) else None


def _v2(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def _deadline(timeout_ms: float | None) -> dict[str, str]:
    return {} if timeout_ms is None else {"Request-Timeout-Ms": f"{timeout_ms:g}"}


def document(response: httpx.Response) -> object:
    """The JSON of an answer.

    Raises:
        ProtocolError: it has none.
    """
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
