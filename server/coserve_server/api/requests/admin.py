"""Authorization of calls that change the server."""

from fastapi import Request

from coserve_server.errors import ForbiddenError
from coserve_server.security.keys import ApiKey
from coserve_server.settings import Settings


async def require_admin(request: Request) -> None:
    """Check that a request may change the server; a dependency of such routes.

    If the server requires API keys, the key needs the role admin. If not, programs on this machine may call,
    but neither other machines nor web pages in a browser.

    Raises:
        ForbiddenError: the request may not change the server.
    """
    settings: Settings = request.app.state.classifier.settings
    key: ApiKey | None = request.scope["state"].get("api_key")
    if settings.api_keys_file is not None:
        if key is None or key.role != "admin":
            raise ForbiddenError("this call needs an API key with the role admin")
    elif settings.public:
        raise ForbiddenError(
            "this call needs an API key, since other machines can reach the server; set api_keys_file"
        )
    elif "origin" in request.headers:
        raise ForbiddenError("this call needs an API key if it comes from a browser; set api_keys_file")
