"""Errors as the Open Inference Protocol has them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

# The protocol knows no 422.
_STATUSES = {422: 400}


class Error(BaseModel):
    """An error."""

    error: str = Field(description="What was wrong, and what is allowed.")


def concerns(request: Request) -> bool:
    """Whether a request is one of this protocol's."""
    return f"{request.url.path}/".startswith("/v2/")


def response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Answer with an error."""
    return JSONResponse({"error": detail}, _STATUSES.get(status, status), headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of these statuses, as OpenAPI documents them."""
    return {status: {"description": HTTPStatus(status).phrase, "model": Error} for status in statuses}
