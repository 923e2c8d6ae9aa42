"""The server's errors; `api.problems` maps request errors to HTTP statuses.

ServerError
  x StartupError            the server cannot start
    + SettingsError         a setting is unknown, missing or out of range
    + KeysError             a file of API keys is broken, or a key cannot be created or revoked
    + TlsError              a certificate or its key cannot be used
    + RepositoryError       the model repository is broken
    + EngineError           a member cannot be loaded or does not fit its ensemble
      + OutOfMemoryError    there is not enough free memory to load an ensemble
    + AddressError          the server cannot listen on the address
  x RequestError            one request cannot be answered
    + UnauthenticatedError  it has no API key, or an unknown one
    + ForbiddenError        its API key does not allow this call
    + NotEnabledError       the server does not offer this call
    + DisconnectedError     the client closed the connection
    + BadImageError         not an image, truncated, too many pixels
    + BadBodyError          the body does not follow its content type's format
    + InvalidParametersError
    + UnknownModelError
    + BodyTooLargeError
    + TooManyImagesError
    + TooManyPixelsError    all images of a request together
    + UnsupportedTypeError
    + UploadTimeoutError    the body did not arrive in time
    + OverloadedError       too many requests at once
    + DeadlineError         too few members answered in time
    + NoQuorumError         too few members gave a usable answer
"""


class ServerError(Exception):
    """Base of all errors that this package raises on purpose; the text is fit for a user."""


class StartupError(ServerError):
    """The server cannot start."""


class SettingsError(StartupError):
    """Settings are unknown, missing or out of range.

    Attributes:
        faults: one line per setting.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__(f"settings: {'; '.join(faults)}")
        self.faults = faults


class KeysError(StartupError):
    """A file of API keys is broken, or a key cannot be created or revoked; the text never has a key."""


class TlsError(StartupError):
    """A certificate or its key cannot be used; the text names the setting and the file."""


class RepositoryError(StartupError):
    """A file of the model repository is missing or broken; the text names the file and what is wrong."""


class EngineError(StartupError):
    """A member cannot be loaded, or its tensors do not fit its ensemble."""


class OutOfMemoryError(EngineError):
    """There is not enough free memory to load an ensemble while the others are served."""


class AddressError(StartupError):
    """The server cannot listen on the address."""


class RequestError(ServerError):
    """One request cannot be answered."""


class UnauthenticatedError(RequestError):
    """The request has no API key, or an unknown one."""

    def __init__(self, message: str, *, key_sent: bool) -> None:
        """Refuse a request with an unknown key, or without one."""
        super().__init__(message)
        self.key_sent = key_sent


class ForbiddenError(RequestError):
    """The request's API key does not allow this call."""


class NotEnabledError(RequestError):
    """The server does not offer this call, or its settings do not allow it."""


class DisconnectedError(RequestError):
    """The client closed the connection, so no response can be sent."""


class BadImageError(RequestError):
    """An image cannot be decoded, or is larger than allowed."""


class BadBodyError(RequestError):
    """The body does not follow the format its content type names."""


class InvalidParametersError(RequestError):
    """A parameter is missing, unknown or out of range."""


class UnknownModelError(RequestError):
    """No served ensemble has this name."""


class BodyTooLargeError(RequestError):
    """The body has more bytes than allowed."""


class TooManyImagesError(RequestError):
    """The request has more images than allowed."""


class TooManyPixelsError(RequestError):
    """The request's images have more pixels in total than allowed."""


class UnsupportedTypeError(RequestError):
    """The server does not read bodies of this content type."""


class UploadTimeoutError(RequestError):
    """The body did not arrive in time."""


class OverloadedError(RequestError):
    """The limit on concurrent requests is reached."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        """Refuse a request; the client should retry after `retry_after_s` seconds."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(RequestError):
    """Too few members answered before the deadline."""


class NoQuorumError(RequestError):
    """Too few members gave a usable answer."""


def first_line(error: Exception | str) -> str:
    """Return the first line of an error's text, which may hold a traceback, or else the error's type."""
    kind = "" if isinstance(error, str) else type(error).__name__
    return next(iter(str(error).strip().splitlines()), kind)
