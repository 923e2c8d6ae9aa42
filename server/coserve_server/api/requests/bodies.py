"""From a request's body, in any of its three forms, to the encoded images in it."""

import asyncio
import base64
import binascii
import sys
import time
from collections.abc import AsyncGenerator
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from coserve_server.api.v1.schemas import ClassifyRequest
from coserve_server.errors import (
    BadBodyError,
    BadImageError,
    BodyTooLargeError,
    DisconnectedError,
    InvalidParametersError,
    TooManyImagesError,
    UnsupportedTypeError,
    UploadTimeoutError,
)
from coserve_server.images.decode import EncodedImage
from coserve_server.settings import Settings

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

FIELD = "files"
GRACE_S = 5
"""Time that a body has before its bytes are counted against `min_upload_rate`."""
SPARE_VALUES = 1000
"""Values that a JSON body may have beside its images or numbers."""

M = TypeVar("M", bound=BaseModel)


async def read_images(request: Request, settings: Settings) -> tuple[list[EncodedImage], int]:
    """Read the images of a multipart, `image/*` or JSON body, within the limits on bytes, time and number.

    Returns:
        the images, and when the whole body was there, on the clock of `time.perf_counter_ns`.

    Raises:
        RequestError: see `errors`; nothing more of the body is read then.
    """
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _read_multipart(request, settings), time.perf_counter_ns()
    if content_type == "application/json":
        body, began = await read_body(request, settings), time.perf_counter_ns()
        return await asyncio.to_thread(_decode_json, body, settings.max_images), began
    if content_type.startswith("image/"):
        return [EncodedImage(await read_body(request, settings))], time.perf_counter_ns()
    raise UnsupportedTypeError(
        f"Content-Type is {content_type or 'missing'}; send multipart/form-data with the field "
        f"{FIELD!r}, image/*, or application/json"
    )


async def read_body(request: Request, settings: Settings, max_bytes: int | None = None) -> bytes:
    """Read a body of any type, within the limits on bytes and time.

    Args:
        max_bytes: fewer than the settings allow; None for as many.

    Raises:
        BodyTooLargeError, DisconnectedError, UploadTimeoutError: nothing more of the body is read then.
    """
    pieces = _arriving(request, settings, max_bytes or settings.max_body_bytes)
    return b"".join([piece async for piece in pieces])


def parse_json(kind: type[M], body: bytes, max_values: int) -> M:
    """Read a JSON body; the parser itself allows 200 levels of nesting and numbers of 4300 digits.

    Args:
        max_values: about how many values it may have. Counted before they are parsed: `[],[],…` would take
            many times its bytes, and every wrong value its own account of the fault.

    Raises:
        BadBodyError, BodyTooLargeError, InvalidParametersError: it is no JSON, too much, or no such object.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > max_values + SPARE_VALUES:
        raise BodyTooLargeError(f"the JSON has far more than the {max_values} values that a request may need")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in faults[:5])
        if faults[0]["type"] == "json_invalid":
            raise BadBodyError(f"not JSON: {said}") from error
        raise InvalidParametersError(said) from error


async def _arriving(request: Request, settings: Settings, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's pieces; stops when it turns out too large, whatever its Content-Length says, or too slow."""
    too_large = BodyTooLargeError(f"the body has more than the {max_bytes} bytes allowed")
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    began, received, more = time.monotonic(), 0, True
    while more:
        left_s = began + _time_s(settings, received) - time.monotonic()
        try:
            # Not `request.stream`, which has an empty piece more to wait for.
            async with timeout(left_s):
                message = await request.receive()
        except asyncio.TimeoutError as error:
            raise UploadTimeoutError(_slowness(settings, received)) from error
        if message["type"] == "http.disconnect":
            raise DisconnectedError("the connection was closed before the body's end")
        piece, more = message.get("body", b""), message.get("more_body", False)
        received += len(piece)
        if received > max_bytes:
            raise too_large
        yield piece


def _time_s(settings: Settings, received: int) -> float:
    """Within which the next piece must come, from the body's first on."""
    longest, rate = settings.upload_timeout_ms / 1000, settings.min_upload_rate
    return min(longest, GRACE_S + received / rate) if rate else longest


def _slowness(settings: Settings, received: int) -> str:
    if _time_s(settings, received) < settings.upload_timeout_ms / 1000:
        return f"the body comes at less than {settings.min_upload_rate} bytes a second"
    return f"the body took longer than {settings.upload_timeout_ms:g} ms"


def _decode_json(body: bytes, max_images: int) -> list[EncodedImage]:
    texts = parse_json(ClassifyRequest, body, max_images).images
    return [EncodedImage(_decode_base64(text, index)) for index, text in enumerate(texts)]


def _decode_base64(text: str, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImageError(f"image {index}: not base64: {error}") from error


class _Parser(MultiPartParser):
    """Starlette's, which takes a body that is cut off between two parts for a whole one."""

    ended = False

    def on_end(self) -> None:
        """The last boundary was there."""
        self.ended = True


async def _read_multipart(request: Request, settings: Settings) -> list[EncodedImage]:
    charset = parse_options_header(request.headers["Content-Type"])[1].get(b"charset", b"utf-8")
    # Python has codecs that fail, or give what no answer can repeat, for any bytes.
    if charset.lower() != b"utf-8":
        raise BadBodyError("multipart body: the charset of its names must be utf-8")
    stream = _arriving(request, settings, settings.max_body_bytes)
    # One more than allowed, so that `Classifier` sees an excess of one and this parser only greater ones.
    parser = _Parser(request.headers, stream, max_files=settings.max_images + 1, max_fields=16)
    # In memory, which the limit on bytes bounds, rather than on disk.
    parser.spool_max_size = settings.max_body_bytes
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise TooManyImagesError(f"more than the {settings.max_images} images allowed") from error
        raise BadBodyError(f"multipart body: {error.message}") from error
    try:
        if not parser.ended:
            raise BadBodyError("multipart body: it ends before its last boundary")
        return [await _read_part(name, part) for name, part in form.multi_items()]
    finally:
        await form.close()


async def _read_part(name: str, part: UploadFile | str) -> EncodedImage:
    if name != FIELD:
        raise InvalidParametersError(f"unknown multipart field {name!r}; images go in {FIELD!r}")
    if isinstance(part, str):
        raise InvalidParametersError(f"multipart field {FIELD!r} has no file name, so it is not a file")
    return EncodedImage(await part.read(), part.filename)
