"""Answers requests that stand for others: HEAD, a slash at the end of a path, a path below a prefix."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coserve_server.api.requests.dependencies import route_path


class Equivalents:
    """Answer HEAD like GET without a body (RFC 9110, 9.3.2), ignore a slash at a path's end, add a prefix.

    The Open Inference Protocol's own description has paths with and without that slash, and its clients do
    not follow redirects. Proxies may remove the prefix from a path or not; ASGI's paths have it.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        """Offer the application below a prefix, which may be empty."""
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the request that this one stands for."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def equivalent_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [_allow_head(*header) for header in message["headers"]]}
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        if not is_head and not self.prefix and not scope["path"].endswith("/"):
            await self.app(scope, receive, equivalent_send)
            return
        # A copy, since the server must know that the method is HEAD to send no body.
        equivalent = self._change(scope)
        try:
            await self.app(equivalent, receive, equivalent_send)
        finally:
            scope["route"] = equivalent.get("route")

    def _change(self, scope: Scope) -> Scope:
        path = route_path(scope).removesuffix("/")
        root = scope.get("root_path", "") + self.prefix
        if path != self.prefix and not path.startswith(f"{self.prefix}/"):
            path = self.prefix + path
        if path == self.prefix:
            path += "/"
        return {
            **scope,
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "path": scope.get("root_path", "") + path,
            "root_path": root,
        }


def _allow_head(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Add HEAD to the methods in an Allow header that has GET."""
    methods = value.split(b", ") if name.lower() == b"allow" else []
    return name, value + b", HEAD" if b"GET" in methods and b"HEAD" not in methods else value
