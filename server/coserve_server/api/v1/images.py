"""Reads the images of a classification request: a multipart, `image/*` or JSON body."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, BinaryIO

from fastapi import Request
from pydantic import BaseModel, Field
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from coserve_server.api.requests.base64_images import decode_base64
from coserve_server.api.requests.bodies import INLINE_BYTES, parse_json, read_body, stream_body
from coserve_server.api.requests.compression import read_encoding
from coserve_server.api.requests.long_texts import LongTexts
from coserve_server.errors import (
    BadBodyError,
    InvalidParametersError,
    TooManyImagesError,
    UnsupportedTypeError,
)
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


class _Parser(MultiPartParser):
    """Starlette's parser, which by itself accepts a body that is cut off between two parts.

    Attributes:
        ended: whether the last boundary has arrived.
    """

    ended = False

    def on_end(self) -> None:
        """Note that the last boundary has arrived."""
        self.ended = True


async def _read_multipart(request: Request, settings: Settings) -> list[EncodedImage]:
    charset = parse_options_header(request.headers["Content-Type"])[1].get(b"charset", b"utf-8")
    # Some of Python's codecs fail on any bytes, or return text that no response can encode.
    if charset.lower() != b"utf-8":
        raise BadBodyError("multipart body: the charset must be utf-8")
    compressed = read_encoding(request.headers) is not None
    stream = (
        _decompressed(request, settings)
        if compressed
        else stream_body(request, settings, settings.max_body_bytes)
    )
    # One file more than allowed is left for `Classifier` to report; the parser stops at the next.
    parser = _Parser(request.headers, _in_pieces(stream), max_files=settings.max_images + 1, max_fields=16)
    # Keep parts in memory rather than on disk: the limit on the body's size bounds them.
    parser.spool_max_size = settings.max_body_bytes
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise TooManyImagesError(f"more than the {settings.max_images} images allowed") from error
        raise BadBodyError(f"multipart body: {error.message}") from error
    try:
        if not parser.ended:
            raise BadBodyError("multipart body: the last boundary is missing")
        return [await _read_part(name, part) for name, part in form.multi_items()]
    finally:
        await form.close()


async def _decompressed(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    yield await read_body(request, settings)


async def _in_pieces(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Divide a body into small pieces, and let other requests run between them."""
    async for body in stream:
        for begin in range(0, len(body), PIECE_BYTES):
            if begin:
                await asyncio.sleep(0)
            yield body[begin : begin + PIECE_BYTES]


async def _read_part(name: str, part: UploadFile | str) -> EncodedImage:
    if name != FIELD:
        raise InvalidParametersError(f"unknown multipart field {name!r}; images go in {FIELD!r}")
    if isinstance(part, str):
        raise InvalidParametersError(f"multipart field {FIELD!r} has no file name, so it is not a file")
    if part.size is None or part.size <= INLINE_BYTES:
        return EncodedImage(await part.read(), part.filename)
    return EncodedImage(await asyncio.to_thread(_read_file, part.file), part.filename)


def _read_file(file: BinaryIO) -> bytes:
    # Copying it in one piece would hold the GIL.
    return b"".join(iter(partial(file.read, INLINE_BYTES), b""))
