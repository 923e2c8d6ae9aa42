"""Build the requests of a client and parse their responses, without any I/O."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import httpx

from coserve_client.decoding import decode, parse_json
from coserve_client.errors import ProblemError, ProtocolError, problem_error
from coserve_client.images import Source, read_images
from coserve_client.options import ClassifyOptions, Value, deadline_header, write_options
from coserve_client.paths import check_version, v1_model_path, v2_model_path
from coserve_client.replies import EarlyStop, Inference, Metadata, Model, Reply
from coserve_client.tensors import HEADER_LENGTH, read_inference, write_inference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

VIA = "coserve_client.via"
"""The extension of a request with the variable that names the proxy it goes through, or None."""

T = TypeVar("T")
Files = list[tuple[str, tuple[str, bytes]]]


# A proxy in front of the server also returns these, without a problem document.
PROXY_STATUSES = (401, 403, 408, 413, 429, 502, 503, 504)
# These say something about the key, not about the server's health.
KEY_STATUSES = (401, 403)


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the parser of its response.

    Attributes:
        parse: makes the result from a successful response.
        files: multipart fields in order, `(field, (file name, bytes))`; bytes can be sent again on a retry.
        content: the body, unless it is multipart.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, Value] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    files: Files = field(default_factory=list)
    content: bytes | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request with the client's address, headers and timeouts."""
        # Of a member of an enumeration of strings, httpx would send the member's name.
        params = {
            name: str.__str__(value) if isinstance(value, str) else value
            for name, value in self.params.items()
        }
        return http.build_request(
            self.method,
            self.path,
            params=params,
            headers=self.headers,
            files=self.files or None,
            content=self.content,
        )

    def read(self, response: httpx.Response) -> T:
        """Return the result in the final response.

        Raises:
            ProblemError: the server reports an error.
            ProtocolError: the response is not from a Coserve server.
        """
        if response.is_success:
            return self.parse(response)
        raise error_from(response)


def classify(images: Source | Iterable[Source], **options: "Unpack[ClassifyOptions]") -> Call[Reply]:
    """Check the options, read the images and build the call that classifies them.

    Raises:
        InputError: there is no image, one cannot be read, or an option cannot be sent.
    """
    params, headers = write_options(**options)
    files: Files = [("files", (image.filename, image.data)) for image in read_images(images)]

    def parse(response: httpx.Response) -> Reply:
        reply = decode(Reply, json_document(response), "reply")
        if len(reply.results) != len(files):
            raise ProtocolError(f"the server returned {len(reply.results)} results for {len(files)} images")
        return reply

    return Call("POST", "/v1/classify", parse, params, headers, files)


def infer(
    model: str,
    images: "ArrayLike",
    version: str | None = None,
    early_stop: EarlyStop | None = None,
    timeout_ms: float | None = None,
    input_name: str = "images",
) -> Call[Inference]:
    """Build the call that computes logits. The arguments are those of `Client.infer`.

    Raises:
        InputError: `images` is not an array of real numbers, NumPy is not installed, an option cannot be
            sent, or no model can have that name or version.
    """
    path = f"{v2_model_path(model, version)}/infer"
    content, json_length, count = write_inference(images, input_name, early_stop)

    def parse(response: httpx.Response) -> Inference:
        inference = read_inference(response.content, response.headers.get(HEADER_LENGTH))
        if len(inference.logits) != count:
            raise ProtocolError(f"the server returned logits of {len(inference.logits)} images for {count}")
        return inference

    headers = {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(json_length),
        **deadline_header(timeout_ms),
    }
    return Call("POST", path, parse, headers=headers, content=content)


def metadata(model: str, version: str | None = None) -> Call[Metadata]:
    """Build the call that describes a model's tensors.

    Raises:
        InputError: no model can have that name or version.
    """
    return Call("GET", v2_model_path(model, version), lambda r: decode(Metadata, json_document(r), "reply"))


def models() -> Call[tuple[Model, ...]]:
    """Build the call that lists the ensembles."""
    return Call("GET", "/v1/models", lambda r: decode(ModelList, json_document(r), "reply").models)


def default_model() -> Call[Model | None]:
    """Build the call that describes the ensemble that answers requests that name none."""

    def parse(response: httpx.Response) -> Model | None:
        served = decode(ModelList, json_document(response), "reply")
        candidates = [one for one in served.models if one.name == served.default]
        if served.default is None and len(served.models) == 1:
            return served.models[0]
        return candidates[0] if candidates else None

    return Call("GET", "/v1/models", parse)


def model(name: str, version: str | None = None) -> Call[Model]:
    """Build the call that describes one ensemble, in its newest version by default.

    Raises:
        InputError: no model can have that name or version.
    """
    check_version(version)
    params: dict[str, Value] = {} if version is None else {"version": version}
    return Call("GET", v1_model_path(name), lambda r: decode(Model, json_document(r), "reply"), params)


@dataclass(frozen=True)
class ModelList:
    """The body of `GET /v1/models`."""

    models: tuple[Model, ...]
    default: str | None = None


def is_healthy(response: httpx.Response) -> bool:
    """Return whether a liveness or readiness response is positive.

    Raises:
        UnauthenticatedError: the response says only that a key is missing or not valid.
        ForbiddenError: the response says only that the call is not allowed.
    """
    if response.status_code in KEY_STATUSES:
        raise error_from(response)
    return response.is_success


def error_from(response: httpx.Response) -> ProblemError | ProtocolError:
    """Return the error for an unsuccessful response."""
    status = response.status_code
    content_type = response.headers.get("Content-Type", "")
    if content_type.partition(";")[0].strip().lower() == "application/problem+json":
        return problem_error(status, decode(dict, json_document(response), "problem"))
    if text := _v2_error(response):
        return problem_error(status, {"title": text})
    if status in PROXY_STATUSES:
        # Some proxies send no reason.
        reason = response.reason_phrase.strip() or httpx.codes.get_reason_phrase(status)
        return problem_error(status, {"title": f"{_address(response)} answered {reason}"})
    return _unexpected(response)


def _v2_error(response: httpx.Response) -> str | None:
    """Return the text of an Open Inference Protocol error, or None if the response is not one."""
    try:
        content = parse_json(response.content)
    except ValueError:
        return None
    text = content.get("error") if isinstance(content, dict) else None
    return text if isinstance(text, str) else None


def json_document(response: httpx.Response) -> object:
    """Return the JSON in a response's body.

    Raises:
        ProtocolError: the body is not JSON.
    """
    try:
        return parse_json(response.content)
    except ValueError as error:
        raise _unexpected(response) from error


def _unexpected(response: httpx.Response) -> ProtocolError:
    target = response.headers.get("Location")
    content_type = response.headers.get("Content-Type", "no content type")
    content = f"a redirect to {target}" if target else content_type
    return ProtocolError(
        f"{_address(response)} answered {response.status_code} with {content}, "
        "which is not a Coserve server's response"
    )


def _address(response: httpx.Response) -> str:
    variable = response.request.extensions.get(VIA)
    return f"{response.url.copy_with(query=None, userinfo=b'')}" + (
        f", or the proxy in {variable}," if variable else ""
    )
