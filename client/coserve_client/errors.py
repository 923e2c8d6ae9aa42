"""The errors that the client raises.

CoserveError
    InputError              an argument, an image or the client cannot be used
    UnreachableError        no connection, or the connection broke
    RequestTimeoutError     no response within the client's timeout
    ProtocolError           the response is not from a Coserve server
    ProblemError            the server reports an error (RFC 9457)
        RejectedError       the images or the request body are not acceptable
            BadImageError, BadBodyError, BodyTooLargeError, TooManyImagesError, TooManyPixelsError,
            UnsupportedTypeError
        UnauthenticatedError, ForbiddenError, UnknownModelError, InvalidParametersError
        UploadTimeoutError, DeadlineError, InternalError
        UnavailableError    the server cannot answer at the moment; retried
            OverloadedError, NoQuorumError
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from coserve_client.reuse import BROKEN, Attempt


class CoserveError(Exception):
    """The base of every error that this package raises."""


class InputError(CoserveError):
    """An argument cannot be used: an unreadable file, no image; or the client is closed."""


class UnreachableError(CoserveError):
    """No connection to the server could be made, or it broke before the response was complete."""


class RequestTimeoutError(CoserveError):
    """The server did not respond within the client's timeout."""


class ProtocolError(CoserveError):
    """The response is not from a Coserve server."""


class ProblemError(CoserveError):
    """An error reported by the server in a problem document (RFC 9457).

    Attributes:
        type: URI reference that identifies the kind of problem; stable across releases.
        title: the kind of problem in words.
        status: HTTP status code of the response.
        detail: explanation of this occurrence, or None.
        extra: the document's other fields.
    """

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        extra = dict(document)
        self.type = str(extra.pop("type", None) or "about:blank")
        self.title = str(extra.pop("title", None) or f"status {status}")
        detail = extra.pop("detail", None)
        self.detail = None if detail is None else str(detail)
        extra.pop("status", None)
        self.status = status
        self.extra = extra
        self._document = document
        super().__init__(f"{self.detail or self.title} (HTTP {status})")

    def __reduce__(self) -> tuple[type["ProblemError"], tuple[int, Mapping[str, Any]]]:
        # By default exceptions are rebuilt from their message, so that none came back from another process.
        return type(self), (self.status, self._document)


class RejectedError(ProblemError):
    """The server rejects the images or the body: not decodable, too large, or of an unsupported type."""


class BadImageError(RejectedError):
    """An image has an unknown format, is broken or truncated, or has too many pixels."""


class BadBodyError(RejectedError):
    """The request's body does not match its content type."""


class BodyTooLargeError(RejectedError):
    """The request's body has more bytes than the server allows."""


class TooManyImagesError(RejectedError):
    """The request has more images than the server allows."""


class TooManyPixelsError(RejectedError):
    """The request's images have more pixels in total than the server allows."""


class UnsupportedTypeError(RejectedError):
    """The server does not accept bodies of this content type."""


class UnauthenticatedError(ProblemError):
    """The server requires an API key, and the client's is missing or not valid."""


class ForbiddenError(ProblemError):
    """The API key does not allow this call."""


class UnknownModelError(ProblemError):
    """The server has no ensemble with that name or version."""


class InvalidParametersError(ProblemError):
    """A parameter is unknown or out of range."""


class UploadTimeoutError(ProblemError):
    """The request took too long to reach the server."""


class DeadlineError(ProblemError):
    """Too few members answered before the deadline of the call or the server, or a proxy timed out."""


class InternalError(ProblemError):
    """An internal error of the server; see its log."""


class UnavailableError(ProblemError):
    """The server is overloaded, or too few members of the ensemble are running."""


class OverloadedError(UnavailableError):
    """The server has reached its limit of requests in progress or of open connections."""


class NoQuorumError(UnavailableError):
    """Too few members of the ensemble gave a usable answer."""


_BY_TYPE: Mapping[str, type[ProblemError]] = {
    "/problems/bad-image": BadImageError,
    "/problems/bad-body": BadBodyError,
    "/problems/body-too-large": BodyTooLargeError,
    "/problems/too-many-images": TooManyImagesError,
    "/problems/too-many-pixels": TooManyPixelsError,
    "/problems/unsupported-type": UnsupportedTypeError,
    "/problems/unauthenticated": UnauthenticatedError,
    "/problems/forbidden": ForbiddenError,
    "/problems/unknown-model": UnknownModelError,
    "/problems/invalid-parameters": InvalidParametersError,
    "/problems/upload-timeout": UploadTimeoutError,
    "/problems/deadline": DeadlineError,
    "/problems/internal": InternalError,
    "/problems/overloaded": OverloadedError,
    "/problems/no-quorum": NoQuorumError,
    # Neither a model nor an image is at fault.
    "/problems/not-found": ProblemError,
    "/problems/bad-request": ProblemError,
}

# For responses without a type: those of /v2 and of proxies.
_BY_STATUS: Mapping[int, type[ProblemError]] = {
    400: RejectedError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: UnknownModelError,
    408: UploadTimeoutError,
    413: RejectedError,
    415: RejectedError,
    422: InvalidParametersError,
    500: InternalError,
    503: UnavailableError,
    504: DeadlineError,
}


def problem_error(status: int, document: Mapping[str, Any]) -> ProblemError:
    """Return the error for a problem document, chosen by its type or else by the status."""
    kind = _BY_TYPE.get(str(document.get("type")), _BY_STATUS.get(status, ProblemError))
    return kind(status, document)


NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")


@dataclass(frozen=True)
class Route:
    """The way to a server, as error messages describe it.

    Attributes:
        url: the server's address.
        proxy: the variable that names the proxy in front of it, or None.
        authorities: the variables that name the certificate authorities to trust, or None.
    """

    url: str
    proxy: str | None = None
    authorities: str | None = None

    def __str__(self) -> str:
        return f"{self.url} through the proxy in {self.proxy}" if self.proxy else self.url


@contextmanager
def translated_errors(route: Route, attempt: Attempt) -> Iterator[None]:
    """Translate httpx's errors into this package's, keeping the original as the cause.

    Args:
        route: the way to the server.
        attempt: how far the sending came.

    Raises:
        UnreachableError: no connection, or the connection broke.
        RequestTimeoutError: a timeout after connecting.
        ProtocolError: the response could not be decoded.
    """
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UnreachableError(_describe_connect_error(route, attempt, error)) from error
    except httpx.PoolTimeout as error:
        raise RequestTimeoutError(
            f"no connection to {route} became free in time (PoolTimeout); use fewer requests at a time, or a "
            "longer timeout"
        ) from error
    except httpx.TimeoutException as error:
        failed = "read the request" if isinstance(error, httpx.WriteTimeout) else "answer"
        raise RequestTimeoutError(f"{route} did not {failed} in time ({type(error).__name__})") from error
    except BROKEN as error:
        reason = str(error) or type(error).__name__
        if attempt.was_answered():
            raise UnreachableError(
                f"the connection to {route} broke within the response ({reason})"
            ) from error
        # Some servers and proxies break off a request that is too large without an answer. A server that
        # requires a client certificate breaks off any.
        secure = route.url.startswith("https:")
        hint = "the server may require a client certificate" if secure else "the server may only speak HTTPS"
        if "Content-Length" in error.request.headers:
            hint = f"the request may be too large, or {hint}"
        raise UnreachableError(f"the connection to {route} broke ({reason}); {hint}") from error
    except httpx.TransportError as error:
        raise UnreachableError(f"the connection to {route} failed: {error}") from error
    except httpx.RequestError as error:
        raise ProtocolError(f"the response of {route} cannot be read: {error}") from error
    except Exception as error:
        # httpx passes on what socksio raises if a SOCKS proxy does not speak SOCKS.
        if route.proxy is None:
            raise
        raise UnreachableError(f"the connection to {route} failed: {error}") from error


def _describe_connect_error(route: Route, attempt: Attempt, error: httpx.TransportError) -> str:
    reason = str(error) or ("timed out" if isinstance(error, httpx.ConnectTimeout) else "connection closed")
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        source = f"; {route.authorities} decides which authorities are trusted" if route.authorities else ""
        return (
            f"the certificate of {route} is not trusted ({reason}){source}; pass the certificate authorities "
            "to trust: verify in Python, --cacert on the command line"
        )
    # OpenSSL's words for a response that is not TLS, in its versions from 1.1.
    if any(text in reason.upper().replace(" ", "_") for text in NOT_TLS):
        plain = route.url.replace("https:", "http:", 1)
        return f"{route} does not speak HTTPS ({reason}); if it is a server without TLS, use {plain}"
    if attempt.was_accepted():
        return f"the TLS handshake with {route} failed ({reason})"
    if route.proxy:
        return f"cannot connect to {route} ({reason}); to connect directly, add the host to NO_PROXY"
    return (
        f"no server answers at {route} ({reason}); "
        "start one with: coserve serve --repository model_repository"
    )
