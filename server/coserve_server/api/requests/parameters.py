"""Parses and documents the parameters of hot routes.

FastAPI's own parsing took a third of the time that a small image's request spends outside the classifier.
"""

import math
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ValidationError

from coserve_server.api.requests.bodies import describe_faults
from coserve_server.errors import InvalidParametersError
from coserve_server.settings.section import LONGEST_MS

M = TypeVar("M", bound=BaseModel)

TIMEOUT = "Request-Timeout-Ms"
TIMEOUT_DESCRIPTION = (
    "Timeout in milliseconds, counted from the complete body; the server's own deadline applies if it is "
    "shorter."
)


def parse_query(request: Request, model: type[M]) -> M:
    """Parse the query; the last one of a repeated parameter counts.

    Raises:
        InvalidParametersError: a parameter is unknown or invalid.
    """
    try:
        query = request.scope["query_string"].decode("latin-1")
        return model.model_validate(dict(parse_qsl(query, keep_blank_values=True)) if query else {})
    except ValidationError as error:
        raise InvalidParametersError(describe_faults(error, model)) from error


def read_timeout_ns(request: Request) -> int | None:
    """Return the request's own timeout in nanoseconds; None if it has none.

    Raises:
        InvalidParametersError: the header is not a positive, finite number.
    """
    text = request.headers.get(TIMEOUT)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidParametersError(f"{TIMEOUT}: {text!r} is not a positive number of milliseconds")
    # Neither end of the range may overflow, nor round to 0, which would mean no timeout.
    return max(1, round(min(value, LONGEST_MS) * 1e6))


def describe_parameters(
    query: type[BaseModel] | None = None, headers: dict[str, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return OpenAPI's description of the query, the timeout header and other headers.

    Args:
        query: model of the query; None if it has no parameters.
        headers: schemas of other headers, with a description each, by name.
    """
    fields = query.model_json_schema()["properties"] if query is not None else {}
    return [
        *(
            {"name": name, "in": "query", "required": False, "schema": schema}
            | ({"description": schema["description"]} if "description" in schema else {})
            for name, schema in ((name, _without_null(field)) for name, field in fields.items())
        ),
        _header(TIMEOUT, {"type": "number", "exclusiveMinimum": 0, "description": TIMEOUT_DESCRIPTION}),
        *(_header(name, {"type": "string"} | schema) for name, schema in (headers or {}).items()),
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional parameter as that of its value: a query cannot hold null."""
    if "anyOf" not in schema:
        return schema
    (kind,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    return {key: value for key, value in schema.items() if key not in ("anyOf", "default")} | dict(kind)


def _header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    parameter = {"name": name, "in": "header", "required": False, "schema": schema}
    return parameter | {"description": schema["description"]}
