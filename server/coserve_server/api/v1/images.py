"""Reads the images of a classification request: a multipart, `image/*` or JSON body."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Request
from pydantic import BaseModel, Field

from coserve_server.api.requests.base64_images import decode_base64
from coserve_server.api.requests.bodies import join, parse_json, read_body, stream_body
from coserve_server.api.requests.compression import read_encoding
from coserve_server.api.requests.long_texts import LongTexts
from coserve_server.api.v1.multipart import Part, PartReader
from coserve_server.errors import InvalidParametersError, UnsupportedTypeError
from coserve_server.pipeline.preparation import EncodedImage
from coserve_server.settings import Settings

FIELD = "files"
"""Multipart field of the images."""
PIECE_BYTES = 2**15
"""Size of the pieces that the multipart parser gets: it reads data that look like boundaries at 4 MB/s."""


class ClassifyRequest(BaseModel, extra="forbid"):
    """The JSON form of a classification request."""

    images: list[Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]] = Field(
        description="Image files in base64 (RFC 4648, section 4), with or without line breaks, or data URIs "
        "of them.",
        json_schema_extra={"minItems": 1},
    )


async def read_images(request: Request, settings: Settings) -> list[EncodedImage]:
    """Read the images of a body within the limits on size, time and number.

    Raises:
        UnsupportedTypeError: the Content-Type is not one of the four, or the Content-Encoding is unknown.
        BadBodyError, BadImageError, InvalidParametersError, TooManyImagesError: the body is not what its type
            says, or has other parts than images, or too many.
        BodyTooLargeError, DisconnectedError, UploadTimeoutError: see `stream_body`.
    """
    content_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        return await _read_multipart(request, settings)
    if content_type == "application/json":
        body = await read_body(request, settings)
        return await asyncio.to_thread(_decode_json, body, settings.max_images)
    # The image's own bytes say what it is.
    if content_type.startswith("image/") or content_type == "application/octet-stream":
        return [EncodedImage(await read_body(request, settings))]
    raise UnsupportedTypeError(
        f"Content-Type is {content_type or 'missing'}; send multipart/form-data with the field "
        f"{FIELD!r}, image/*, application/octet-stream, or application/json"
    )


def _decode_json(body: bytes, max_images: int) -> list[EncodedImage]:
    texts = LongTexts(body, max_images)
    images = parse_json(ClassifyRequest, texts.rest, max_images).images
    return [EncodedImage(decode_base64(texts.read(text), index)) for index, text in enumerate(images)]


async def _read_multipart(request: Request, settings: Settings) -> list[EncodedImage]:
    reader = PartReader(request.headers["Content-Type"], settings.max_images)
    compressed = read_encoding(request.headers) is not None
    stream = (
        _decompressed(request, settings)
        if compressed
        else stream_body(request, settings, settings.max_body_bytes)
    )
    async for body in stream:
        for begin in range(0, len(body), PIECE_BYTES):
            if begin:
                # Let other requests run.
                await asyncio.sleep(0)
            reader.write(body[begin : begin + PIECE_BYTES])
    return [await _read_part(part) for part in reader.finish()]


async def _decompressed(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    yield await read_body(request, settings)


async def _read_part(part: Part) -> EncodedImage:
    if part.name != FIELD:
        raise InvalidParametersError(f"unknown multipart field {part.name!r}; images go in {FIELD!r}")
    if part.filename is None:
        raise InvalidParametersError(f"multipart field {FIELD!r} has no file name, so it is not a file")
    return EncodedImage(await join(part.pieces), part.filename)
