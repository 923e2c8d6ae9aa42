"""What can go wrong between a client and its server.

CoserveError
  x InputError            what the caller gave cannot be sent
  x UnreachableError      no connection, or it broke
  x RequestTimeoutError   the server took too long
  x ProtocolError         the answer is not a Coserve server's
  x ProblemError          the server says what is wrong (RFC 9457)
    + RejectedError       it does not take these images
      - BadImageError, BadBodyError, BodyTooLargeError, TooManyImagesError, UnsupportedTypeError
    + UnauthenticatedError, ForbiddenError, UnknownModelError, InvalidParametersError
    + UploadTimeoutError, DeadlineError, InternalError
    + UnavailableError    it cannot just now; retried
      - OverloadedError, NoQuorumError
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx


class CoserveError(Exception):
    """Base of every error this package raises."""


class InputError(CoserveError):
    """What the caller gave cannot be sent: an unreadable file, no image, an unusable address."""


class UnreachableError(CoserveError):
    """No connection to the server could be made, or it broke before the answer was complete."""


class RequestTimeoutError(CoserveError):
    """The server did not answer within the client's timeout."""


class ProtocolError(CoserveError):
    """The answer is not one a Coserve server gives."""


class ProblemError(CoserveError):
    """The server's own account of what went wrong, an RFC 9457 problem document.

    Attributes:
        type: URI reference that identifies the kind of problem; stable across releases.
        title: the kind of problem in words.
        status: HTTP status code of the answer.
        detail: what happened this time, or None.
        extra: the document's other members.
    """

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        extra = dict(document)
        self.type = str(extra.pop("type", "about:blank"))
        self.title = str(extra.pop("title", f"status {status}"))
        detail = extra.pop("detail", None)
        self.detail = None if detail is None else str(detail)
        extra.pop("status", None)
        self.status = status
        self.extra = extra
        super().__init__(f"{self.detail or self.title} (the server answered {status})")


class RejectedError(ProblemError):
    """The server does not take these images: not decodable, too large, or of an unsupported type."""


class BadImageError(RejectedError):
    """An image is of an unknown format, broken, truncated, or too large in pixels."""


class BadBodyError(RejectedError):
    """The request's body is not what its content type says."""


class BodyTooLargeError(RejectedError):
    """The request has more bytes than the server allows."""


class TooManyImagesError(RejectedError):
    """The request has more images than the server allows."""


class UnsupportedTypeError(RejectedError):
    """The server does not read bodies of this type."""


class UnauthenticatedError(ProblemError):
    """The server asks for an API key, and the client has none or a wrong one."""


class ForbiddenError(ProblemError):
    """The API key does not allow this call."""


class UnknownModelError(ProblemError):
    """The server has no ensemble of that name, or not in that version."""


class InvalidParametersError(ProblemError):
    """A parameter is unknown or out of range."""


class UploadTimeoutError(ProblemError):
    """The request took too long to arrive."""


class DeadlineError(ProblemError):
    """Too few members answered in the time the call or the server allows, or a proxy waited in vain."""


class InternalError(ProblemError):
    """The server is at fault; its log says how."""


class UnavailableError(ProblemError):
    """The server is overloaded, or too few members of the ensemble are running."""


class OverloadedError(UnavailableError):
    """The server is answering as many requests, or holds as many connections, as it may."""


class NoQuorumError(UnavailableError):
    """Too few members of the ensemble gave a usable answer."""


_BY_TYPE: Mapping[str, type[ProblemError]] = {
    "/problems/bad-image": BadImageError,
    "/problems/bad-body": BadBodyError,
    "/problems/body-too-large": BodyTooLargeError,
    "/problems/too-many-images": TooManyImagesError,
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
}

# Where nothing says the type: the answers of /v2, and of proxies.
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


def problem(status: int, document: Mapping[str, Any]) -> ProblemError:
    """The error of a problem document, by its type, else by the status."""
    kind = _BY_TYPE.get(str(document.get("type")), _BY_STATUS.get(status, ProblemError))
    return kind(status, document)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise httpx's errors as this package's, most specific first, with the cause kept.

    Raises:
        UnreachableError: no connection, or it broke.
        RequestTimeoutError: a timeout after connecting.
        ProtocolError: the answer could not be decoded.
    """
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UnreachableError(
                f"the certificate of {url} is not trusted ({error}); name the authorities that may "
                "certify it: --cacert, or verify"
            ) from error
        raise UnreachableError(
            f"no server answers at {url} ({str(error) or 'timed out'}); "
            "start one with: coserve serve --repository model_repository"
        ) from error
    except httpx.TimeoutException as error:
        raise RequestTimeoutError(f"{url} did not answer in time ({type(error).__name__})") from error
    except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
        # A server that refuses a body before reading all of it resets the connection; under asyncio the
        # reset discards its answer. One that misses a certificate resets or closes it.
        raise UnreachableError(
            f"the connection to {url} broke ({str(error) or type(error).__name__}); "
            "perhaps because the request is larger than it allows, or lacks a client's certificate"
        ) from error
    except httpx.TransportError as error:
        raise UnreachableError(f"the connection to {url} failed: {error}") from error
    except httpx.RequestError as error:
        raise ProtocolError(f"the answer of {url} cannot be read: {error}") from error
