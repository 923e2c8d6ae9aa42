"""Authorization of calls that change the server."""

from fastapi import Request

from coserve_server.errors import ForbiddenError
from coserve_server.security.keys import ApiKey
from coserve_server.settings import Settings


async def require_admin(request: Request) -> None:
    """Check that a request may change the server; a dependency of such routes.

    Raises:
        ForbiddenError: see `check_admin`.
    """
    settings: Settings = request.app.state.classifier.settings
    check_admin(settings, request.scope["state"].get("api_key"), from_browser="origin" in request.headers)


def check_admin(settings: Settings, key: ApiKey | None, *, from_browser: bool) -> None:
    """Check that a client may change the server.

    If the server requires API keys, the key needs the role admin. If not, programs on this machine may call,
    but neither other machines nor web pages in a browser.

    Raises:
        ForbiddenError: the client may not.
    """
    if settings.api_keys_file is not None:
        if key is None or key.role != "admin":
            raise ForbiddenError("this call needs an API key with the role admin")
    elif settings.public:
        raise ForbiddenError(
            "this call needs an API key, since other machines can reach the server; set api_keys_file"
        )
    elif from_browser:
        raise ForbiddenError("this call needs an API key if it comes from a browser; set api_keys_file")
