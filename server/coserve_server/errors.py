"""What can go wrong in serving; `api.problems` maps the request errors to HTTP statuses.

ServerError
  x StartupError            the server cannot start
    + SettingsError         a setting is missing or out of range
    + RepositoryError       the model repository is broken
    + EngineError           a member cannot be loaded or does not fit its ensemble
    + AddressError          the address cannot be listened on
    + TritonError           Triton's server is not installed or does not start
  x RequestError            one request cannot be answered
    + BadImageError         not an image, truncated, too many pixels
    + BadBodyError          the body does not follow its content type's format
    + InvalidParametersError
    + UnknownModelError
    + BodyTooLargeError
    + TooManyImagesError
    + UnsupportedTypeError
    + UploadTimeoutError    the body did not arrive in time
    + OverloadedError       too many requests at once
    + DeadlineError         too few members answered in time
    + NoQuorumError         too few members gave a usable answer
"""


class ServerError(Exception):
    """Base of every error this package raises on purpose; its text is fit for a user."""


class StartupError(ServerError):
    """The server cannot start."""


class SettingsError(StartupError):
    """A setting is missing or out of range."""


class RepositoryError(StartupError):
    """A file of the model repository is missing or broken; the text names the file and what is wrong."""


class EngineError(StartupError):
    """A member cannot be loaded, or its tensors do not fit its ensemble."""


class AddressError(StartupError):
    """The address cannot be listened on."""


class TritonError(StartupError):
    """Triton's server is not installed, or does not start; the text has its own reason."""


class RequestError(ServerError):
    """One request cannot be answered."""


class BadImageError(RequestError):
    """An image cannot be decoded, or is larger than allowed."""


class BadBodyError(RequestError):
    """The body does not follow the format its content type names."""


class InvalidParametersError(RequestError):
    """A parameter is missing, unknown or out of range."""


class UnknownModelError(RequestError):
    """No ensemble of that name is served."""


class BodyTooLargeError(RequestError):
    """The body has more bytes than allowed."""


class TooManyImagesError(RequestError):
    """The request has more images than allowed."""


class UnsupportedTypeError(RequestError):
    """The body's content type is not one the server reads."""


class UploadTimeoutError(RequestError):
    """The body did not arrive in time."""


class OverloadedError(RequestError):
    """The server is answering as many requests as it may at once."""


class DeadlineError(RequestError):
    """Too few members answered before the deadline."""


class NoQuorumError(RequestError):
    """Too few members gave a usable answer."""
