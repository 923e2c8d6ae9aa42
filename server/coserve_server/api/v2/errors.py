"""The Open Inference Protocol's error format."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

TAG = "open inference protocol"
# The protocol does not know 422.
_STATUSES = {422: 400}


class Error(BaseModel):
    """An error."""

    error: str = Field(description="What was wrong, and what is allowed.")


# A default response keeps FastAPI from documenting 422.
RESPONSES: dict[int | str, dict[str, Any]] = {"default": {"model": Error, "description": "An error"}}


def error_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error in the protocol's format."""
    return JSONResponse({"error": detail}, _STATUSES.get(status, status), headers)
