"""Lingering close: deliver responses that are sent before the request's body has been read."""

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_S = 10


class LingeringClose:
    """Send such a response at once, read and drop the rest of the body for a limited time, then close.

    A connection that is closed while bytes are unread is reset, and then the client may lose the response
    (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp, linger_s: float = LINGER_S) -> None:
        self.app = app
        self.linger_s = linger_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch how much of its body is read."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if not unread:
            await self.app(scope, receive, send)
            return

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def drop_body() -> None:
            while unread:
                await watched_receive()

        async def lingering_send(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            if message["type"] == "http.response.body" and unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(drop_body(), self.linger_s)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, watched_receive, lingering_send)
