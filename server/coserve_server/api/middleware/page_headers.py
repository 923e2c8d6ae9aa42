"""Headers that tell browsers what not to do with an answer (OWASP HTTP Headers Cheat Sheet)."""

import base64
import hashlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DOCS = "/docs"
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class PageHeaders:
    """Forbids guessing of content types; pages may load nothing from elsewhere, nor be framed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        page: Message | None = None

        async def guarded(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": headers}
                if _is_page(headers):
                    # It waits for the body, which has the script that the policy must name.
                    page = message
                    return
            elif page is not None:
                script = message.get("body", b"") if scope["path"] == DOCS else b""
                await send({**page, "headers": [*page["headers"], *_page_headers(script)]})
                page = None
            await send(message)

        await self.app(scope, receive, guarded)


def _is_page(headers: list[tuple[bytes, bytes]]) -> bool:
    return dict(headers).get(b"content-type", b"").startswith(b"text/html")


def _page_headers(html: bytes) -> list[tuple[bytes, bytes]]:
    """The policy allows the inline scripts of `html`, which must not depend on the request.

    Swagger UI sets styles from its script, and has its icons in data: addresses.
    """
    hashes = (base64.b64encode(hashlib.sha256(script).digest()) for script in _INLINE_SCRIPT.findall(html))
    scripts = b" ".join([b"'self'", *(b"'sha256-%b'" % digest for digest in hashes)])
    policy = (
        b"default-src 'none'; script-src %b; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" % scripts
    )
    return [
        (b"content-security-policy", policy),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
    ]
