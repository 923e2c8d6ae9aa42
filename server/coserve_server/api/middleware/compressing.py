"""Compresses answers for clients that ask for it (RFC 9110, section 12.5.3)."""

import asyncio
import zlib
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_BYTES = 2**12
"""Smaller answers fit into a few packets anyway."""
INLINE_BYTES = 2**15
"""Larger answers are compressed on a thread."""
_LEVEL = 4
# zlib's window sizes; 16 more selects the gzip format. The first is preferred.
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Compressing:
    """Compress answers that are sent in one piece and become smaller by it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and compress its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None

        async def compressing_send(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                begun = start
                start = None
                if not message.get("more_body", False):
                    message = await _compress(begun, message, scope)
                await send(begun)
            await send(message)

        await self.app(scope, receive, compressing_send)


def choose_encoding(accepted: str) -> str | None:
    """Return the encoding for a client; None to send the answer as it is.

    Args:
        accepted: the header Accept-Encoding.
    """
    weights: dict[str, float] = {}
    for item in accepted.lower().split(","):
        name, _, parameters = item.partition(";")
        weights[name.strip().removeprefix("x-")] = _read_weight(parameters)
    offered = {name: weights.get(name, weights.get("*", 0)) for name in _WINDOWS}
    best = max(offered, key=lambda name: offered[name])
    return best if offered[best] > 0 else None


def _read_weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1
    try:
        return float(value)
    except ValueError:
        return 0


async def _compress(start: Message, body: Message, scope: Scope) -> Message:
    """Return the message of the body, compressed if that makes it smaller; change the headers to fit."""
    content: bytes = body.get("body", b"")
    if len(content) < MIN_BYTES:
        return body
    headers = MutableHeaders(raw=list(start["headers"]))
    if not _is_compressible(headers):
        return body
    encoding = choose_encoding(Headers(scope=scope).get("accept-encoding", ""))
    headers.add_vary_header("Accept-Encoding")
    if encoding is not None:
        inline = len(content) <= INLINE_BYTES
        packed = _pack(content, encoding) if inline else await asyncio.to_thread(_pack, content, encoding)
        if len(packed) < len(content):
            headers["Content-Encoding"] = encoding
            headers["Content-Length"] = str(len(packed))
            body = {**body, "body": packed}
    start["headers"] = headers.raw
    return body


def _is_compressible(headers: Mapping[str, str]) -> bool:
    """Return whether an answer may change its form: an entity tag and an encoding belong to one form."""
    return not any(name in headers for name in ("content-encoding", "content-range", "etag"))


def _pack(content: bytes, encoding: str) -> bytes:
    packing = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    return packing.compress(content) + packing.flush()
