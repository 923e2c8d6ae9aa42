"""Authorisation of calls that change the server."""

from fastapi import Request

from coserve_server.errors import ForbiddenError
from coserve_server.security.keys import ApiKey
from coserve_server.settings import Settings


async def require_admin(request: Request) -> None:
    """Check that a request may change the server; a dependency of such routes.

    With API keys, the key needs the role admin. Without, programs on this machine may call, but neither web
    pages in a browser nor other machines.

    Raises:
        ForbiddenError: the request may not.
    """
    settings: Settings = request.app.state.classifier.settings
    key: ApiKey | None = request.scope["state"].get("api_key")
    if settings.api_keys_file is not None:
        if key is None or key.role != "admin":
            raise ForbiddenError("this call needs an API key of the role admin")
    elif settings.public:
        raise ForbiddenError(
            "this call needs API keys where other machines reach the server; set api_keys_file"
        )
    elif "origin" in request.headers:
        raise ForbiddenError("from a browser this call needs API keys; set api_keys_file")
