"""Errors as the Open Inference Protocol has them."""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

TAG = "open inference protocol"
# The protocol knows no 422.
_STATUSES = {422: 400}


class Error(BaseModel):
    """An error."""

    error: str = Field(description="What was wrong, and what is allowed.")


# With this, FastAPI does not document a 422 of its own.
RESPONSES: dict[int | str, dict[str, Any]] = {"default": {"model": Error, "description": "An error"}}


def concerns(request: Request) -> bool:
    """Whether a request is one of this protocol's."""
    return f"{request.url.path}/".startswith("/v2/")


def response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Answer with an error."""
    return JSONResponse({"error": detail}, _STATUSES.get(status, status), headers)
