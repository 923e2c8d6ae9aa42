"""Parameters of the two hot routes.

FastAPI's own parsing of parameters took a third of a small image's request outside the classifier.
"""

import math
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from coserve_server.api.requests.dependencies import TIMEOUT, TIMEOUT_DESCRIPTION
from coserve_server.errors import InvalidParametersError

M = TypeVar("M", bound=BaseModel)


def query(request: Request, model: type[M]) -> M:
    """Parse the query; if a parameter is repeated, the last one counts.

    Raises:
        RequestValidationError: a parameter is unknown or invalid.
    """
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        faults = [{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults) from error


def timeout_ns(request: Request) -> int | None:
    """Return the request's own limit on the answer's time in nanoseconds; None if it has none.

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
    return round(value * 1e6)


def documented(
    query: type[BaseModel] | None = None, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return OpenAPI's description of the query's parameters, the time limit, and more headers.

    Args:
        headers: descriptions by name.
    """
    fields = query.model_json_schema()["properties"] if query is not None else {}
    return [
        *(
            {"name": name, "in": "query", "required": False, "schema": schema}
            | ({"description": schema["description"]} if "description" in schema else {})
            for name, schema in fields.items()
        ),
        _header(TIMEOUT, {"type": "number", "exclusiveMinimum": 0}, TIMEOUT_DESCRIPTION),
        *(_header(name, {"type": "string"}, text) for name, text in (headers or {}).items()),
    ]


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}
