"""Security headers of answers (OWASP HTTP Headers Cheat Sheet)."""

import base64
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOSNIFF = (b"x-content-type-options", b"nosniff")


class PageHeaders:
    """Keep browsers from guessing content types, framing pages, and loading anything from elsewhere."""

    def __init__(self, app: ASGIApp, describe_policy: Callable[[str], bytes]) -> None:
        """Take a function that returns the pages' Content-Security-Policy for a path prefix."""
        self.app = app
        self.describe_policy = lru_cache(maxsize=8)(describe_policy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add headers to its answer."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], NOSNIFF]
                if dict(headers).get(b"content-type", b"").startswith(b"text/html"):
                    headers += [
                        (b"content-security-policy", self.describe_policy(scope.get("root_path", ""))),
                        (b"x-frame-options", b"DENY"),
                        (b"referrer-policy", b"no-referrer"),
                    ]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, guarded)


def docs_policy(app: FastAPI, root_path: str) -> bytes:
    """Return a Content-Security-Policy that allows only what the pages / and /docs need.

    Swagger UI has one inline script, sets styles from its scripts, and keeps its icons in data: addresses. So
    do the charts and the photograph of the page at /, which has no inline script.

    Args:
        root_path: path prefix of the application, which the inline script holds.
    """
    page = get_swagger_ui_html(
        openapi_url=f"{root_path}{app.openapi_url}",
        title=app.title,
        oauth2_redirect_url=app.swagger_ui_oauth2_redirect_url,
        swagger_ui_parameters=app.swagger_ui_parameters,
    )
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    )
    return (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ).encode()
