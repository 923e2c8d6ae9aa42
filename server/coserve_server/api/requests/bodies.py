"""Reads request bodies within the limits on size and time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.types import Message

from coserve_server.api.requests.compression import decompress, read_encoding
from coserve_server.api.requests.dependencies import get_record
from coserve_server.api.requests.long_texts import MIN_BYTES, SPARE_VALUES
from coserve_server.api.requests.timeouts import timeout
from coserve_server.errors import (
    BadBodyError,
    BodyTooLargeError,
    DisconnectedError,
    InvalidParametersError,
    UploadTimeoutError,
)
from coserve_server.settings import Settings

GRACE_S = 5
"""Grace period before `min_upload_rate` applies."""
INLINE_BYTES = 2**20
"""Larger bodies are put together on a thread."""
MAX_JSON_BYTES = 2**20
"""Limit on a JSON body without long texts and arrays of numbers; each value may add `MIN_BYTES`."""

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, settings: Settings, max_bytes: int | None = None) -> bytes:
    """Read a whole body within the limits on size and time, and undo its Content-Encoding.

    Args:
        max_bytes: a lower limit than the settings'; None for theirs. It holds before and after decompression.

    Raises:
        UnsupportedTypeError: the Content-Encoding is unknown; nothing is read then.
        BadBodyError: the compressed data is broken.
        BodyTooLargeError, DisconnectedError, UploadTimeoutError: see `stream_body`.
    """
    max_bytes = max_bytes or settings.max_body_bytes
    encoding = read_encoding(request.headers)
    pieces = [piece async for piece in stream_body(request, settings, max_bytes)]
    body = await join(pieces)
    if encoding is None:
        return body
    return await asyncio.to_thread(decompress, body, encoding, max_bytes)


async def join(pieces: Sequence[bytes]) -> bytes:
    """Put the pieces of a body together."""
    # Copying the largest bodies takes as long as other requests may wait.
    large = sum(map(len, pieces)) > INLINE_BYTES
    return await asyncio.to_thread(b"".join, pieces) if large else b"".join(pieces)


def parse_json(model: type[M], body: bytes, max_values: int) -> M:
    """Parse a JSON body; the parser itself allows 200 levels of nesting and numbers of 4300 digits.

    Args:
        body: the JSON, without long texts and arrays of numbers: the parser holds the GIL.
        max_values: limit on the number of values, counted roughly before parsing: `[],[],…` would take many
            times its size in memory, and each wrong value would get a report of its own.

    Raises:
        BadBodyError: the body is not JSON.
        BodyTooLargeError: it has far too many values, or too many bytes.
        InvalidParametersError: it does not fit the model.
    """
    if _count_values(body) > max_values + SPARE_VALUES:
        raise BodyTooLargeError(
            f"the JSON body has far more than {max_values} values, the most that a request needs"
        )
    if len(body) > (most := MAX_JSON_BYTES + max_values * MIN_BYTES):
        raise BodyTooLargeError(f"the JSON body has more than {most} bytes beside its images and numbers")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        text = describe_faults(error, model)
        if error.errors(include_context=False, include_input=False)[0]["type"] == "json_invalid":
            raise BadBodyError(f"not JSON: {text}") from error
        raise InvalidParametersError(text) from error


def _count_values(body: bytes) -> int:
    # In pieces, since counting holds the GIL.
    starts = range(0, len(body), INLINE_BYTES)
    return sum(body.count(sign, at, at + INLINE_BYTES) for at in starts for sign in (b",", b"[", b"{"))


def describe_faults(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first five places where a request does not fit its model, and why."""
    known = f"unknown; allowed are {', '.join(model.model_fields)}"
    faults = error.errors(include_url=False, include_context=False, include_input=False)[:5]
    reasons = [known if one["type"] == "extra_forbidden" else one["msg"] for one in faults]
    places = [".".join(map(str, one["loc"])) or "body" for one in faults]
    return "; ".join(f"{place}: {reason}" for place, reason in zip(places, reasons, strict=True))


async def stream_body(request: Request, settings: Settings, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body's pieces as they arrive, and note in the request's record when the last one did.

    After an error, the rest of the body is not read.

    Raises:
        BodyTooLargeError: the body is too large, or its Content-Length says so.
        UploadTimeoutError: the body arrives too slowly.
        DisconnectedError: the client closed the connection.
    """
    too_large = BodyTooLargeError(f"the body has more than the {max_bytes} bytes allowed")
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    began_ns = time.perf_counter_ns()
    received = 0
    more = True
    while more:
        passed_s = (time.perf_counter_ns() - began_ns) / 1e9
        try:
            # `request.stream` would yield one more, empty piece.
            message = await _receive(request, _time_limit_s(settings, received) - passed_s)
        except asyncio.TimeoutError as error:
            raise UploadTimeoutError(_describe_slowness(settings, received)) from error
        if message["type"] == "http.disconnect":
            raise DisconnectedError("the connection was closed before the end of the body")
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(piece)
        if received > max_bytes:
            raise too_large
        if not more:
            get_record(request).received_ns = time.perf_counter_ns()
        yield piece


async def _receive(request: Request, seconds: float) -> Message:
    """Return the next message; TimeoutError if none arrives in time, however busy the server itself is."""
    try:
        async with timeout(seconds):
            return await request.receive()
    except asyncio.TimeoutError:
        # The event loop may have been late, and the message not.
        async with timeout(0):
            return await request.receive()


def _time_limit_s(settings: Settings, received: int) -> float:
    """Return the time limit for the next piece, in seconds from the first one."""
    longest = settings.upload_timeout_ms / 1000
    rate = settings.min_upload_rate
    return min(longest, GRACE_S + received / rate) if rate else longest


def _describe_slowness(settings: Settings, received: int) -> str:
    if _time_limit_s(settings, received) < settings.upload_timeout_ms / 1000:
        return f"the body arrives at less than {settings.min_upload_rate} bytes per second"
    return f"the body took longer than {settings.upload_timeout_ms:g} ms"
