"""The paths of models, and the names that a path can carry."""

from urllib.parse import quote

from coserve_client.errors import InputError


def check_model(name: object) -> None:
    """Check the name of a model.

    Raises:
        InputError: no model can have that name.
    """
    _check_folder("the name of a model", name)


def check_version(version: object) -> None:
    """Check the version of a model; None stands for the newest.

    Raises:
        InputError: no version can have that name.
    """
    if version is not None:
        _check_folder("the version of a model", version)


def v1_model_path(name: str) -> str:
    """Return the path that describes an ensemble.

    Raises:
        InputError: no model can have that name.
    """
    check_model(name)
    return f"/v1/models/{quote(name, safe='')}"


def v2_model_path(name: str, version: str | None) -> str:
    """Return a model's path in the Open Inference Protocol, in its newest version by default.

    Raises:
        InputError: no model can have that name or version.
    """
    check_model(name)
    check_version(version)
    path = f"/v2/models/{quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def readiness_path(model: str | None, version: str | None) -> str:
    """Return the path that reports whether the server, or one model, is ready.

    Raises:
        InputError: no model can have that name or version, or there is a version without a name.
    """
    if model is not None:
        return f"{v2_model_path(model, version)}/ready"
    if version is not None:
        raise InputError("a version needs the name of its model")
    return "/readyz"


def _check_folder(subject: str, name: object) -> None:
    if not isinstance(name, str):
        raise InputError(f"{subject} must be a string, not {type(name).__name__}")
    if not name:
        raise InputError(f"{subject} must not be empty")
    # Such a name would lead to another route: servers decode %2F before they route.
    if name in (".", "..") or "/" in name:
        raise InputError(f"{subject} is that of a folder in the model repository, which {name!r} cannot be")
    check_text(subject, name)


def check_text(subject: str, text: str) -> None:
    """Check that a text can be sent.

    Raises:
        InputError: it has characters without an encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{subject} has characters that cannot be sent: {text!r}") from error
