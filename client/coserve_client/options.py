"""The options of a classification, and how a request carries them."""

from typing import TypedDict

from coserve_client.errors import InputError
from coserve_client.paths import check_model, check_text, check_version
from coserve_client.replies import EarlyStop, SetMethod

Value = str | int | float | bool


class ClassifyOptions(TypedDict, total=False):
    """The arguments of `Client.classify` other than the images."""

    model: str | None
    version: str | None
    top_k: int
    member_predictions: bool
    coverage: float | None
    set_method: SetMethod | None
    early_stop: EarlyStop | None
    timeout_ms: float | None


def write_options(
    model: str | None = None,
    version: str | None = None,
    top_k: int = 5,
    member_predictions: bool = False,
    coverage: float | None = None,
    set_method: SetMethod | None = None,
    early_stop: EarlyStop | None = None,
    timeout_ms: float | None = None,
) -> tuple[dict[str, Value], dict[str, str]]:
    """Return the query and the headers of a classification. The server checks most values.

    Raises:
        InputError: an option cannot be sent, or no model can have that name or version.
    """
    if model is not None:
        check_model(model)
    check_version(version)
    optional = {
        "model": model,
        "version": version,
        "coverage": coverage,
        "set_method": set_method,
        "early_stop": early_stop,
    }
    query: dict[str, Value] = {"top_k": top_k, "member_predictions": member_predictions}
    query |= {name: value for name, value in optional.items() if value is not None}
    for name, value in query.items():
        # httpx would repeat the parameter, and the server take the last one.
        if isinstance(value, (list, tuple)):
            raise InputError(f"{name} must be one value, not {value!r}")
        if isinstance(value, str):
            check_text(name, value)
    return query, deadline_header(timeout_ms)


def deadline_header(timeout_ms: float | None) -> dict[str, str]:
    """Return the header that shortens the server's deadline, if there is one.

    Raises:
        InputError: it is not a number.
    """
    if timeout_ms is None:
        return {}
    try:
        return {"Request-Timeout-Ms": f"{timeout_ms:.15g}"}
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"timeout_ms must be a number of milliseconds, not {timeout_ms!r}") from error
