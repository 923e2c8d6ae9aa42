"""Where and how both clients connect."""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from coserve_client.errors import InputError

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=60.0)
API_KEY_VARIABLE = "COSERVE_API_KEY"
# None means the client's own transport: an environment's HTTP_PROXY cannot reach this machine's loopback.
LOOPBACK = {"all://127.0.0.1": None, "all://[::1]": None, "all://localhost": None}

Verify: TypeAlias = str | os.PathLike[str] | ssl.SSLContext | None


def options(
    url: str,
    api_key: str | None,
    verify: Verify,
    timeout: httpx.Timeout | float,
    headers: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The arguments of httpx's clients.

    Raises:
        InputError: the address, the key or the certificates are not usable.
    """
    key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable()):
        raise InputError("the API key has characters that no header can carry")
    return {
        "base_url": _checked(url),
        "headers": {**({"X-API-Key": key} if key else {}), **(headers or {})},
        "timeout": timeout,
        "verify": _context(verify),
        "mounts": LOOPBACK,
    }


def _context(verify: Verify) -> ssl.SSLContext | bool:
    if verify is None:
        return True
    if isinstance(verify, ssl.SSLContext):
        return verify
    try:
        return ssl.create_default_context(cafile=Path(verify))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{verify} holds no certificates in PEM: {error}") from error


def _checked(url: str) -> str:
    """The server's address, as given.

    Raises:
        InputError: it is not an HTTP address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"{url!r} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is not an address such as http://127.0.0.1:8000")
    return url
