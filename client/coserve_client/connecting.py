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
# The server closes idle connections after 5 s, and a request must not meet that; the rest is httpx's default.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=2)
# None means the client's own transport: an environment's HTTP_PROXY cannot reach this machine's loopback.
LOOPBACK = {"all://127.0.0.1": None, "all://[::1]": None, "all://localhost": None}

File: TypeAlias = str | os.PathLike[str]
Verify: TypeAlias = File | ssl.SSLContext | None
Certificate: TypeAlias = File | tuple[File, File] | None


def options(
    url: str,
    api_key: str | None,
    verify: Verify,
    certificate: Certificate,
    timeout: httpx.Timeout | float,
    headers: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The arguments of httpx's clients.

    Raises:
        InputError: the address, the key, a header or the certificates are not usable.
    """
    key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError("the API key must be printable ASCII, without spaces at its ends")
    return {
        "base_url": _checked(url),
        "headers": _merged(key, headers or {}),
        "timeout": timeout,
        "verify": _context(verify, certificate),
        "limits": LIMITS,
        "mounts": LOOPBACK,
    }


def _merged(key: str | None, headers: Mapping[str, str]) -> httpx.Headers:
    """The headers of every request; those given win over the key, in whatever case they are written."""
    merged = httpx.Headers({"X-API-Key": key} if key else None)
    try:
        merged.update(headers)
    except UnicodeEncodeError as error:
        raise InputError(f"headers must be ASCII: {error}") from error
    return merged


def _context(verify: Verify, certificate: Certificate) -> ssl.SSLContext | bool:
    if verify is None and certificate is None:
        return True
    if isinstance(verify, ssl.SSLContext):
        return verify
    try:
        context = ssl.create_default_context(cafile=verify and Path(verify))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{verify} holds no certificates in PEM: {error}") from error
    if certificate is not None:
        files = certificate if isinstance(certificate, tuple) else (certificate,)
        try:
            context.load_cert_chain(files[0], files[-1])
        except (OSError, ssl.SSLError) as error:
            names = " and ".join(map(os.fsdecode, files))
            raise InputError(f"{names}: no certificate with its key in PEM: {error}") from error
    return context


def _checked(url: str) -> str:
    """The server's address, as given.

    Raises:
        InputError: it is not an HTTP address.
    """
    try:
        parsed = httpx.URL(url)
        host, port = parsed.host, parsed.port
        # As sockets will.
        parsed.raw_host.decode("ascii").encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InputError(f"{url!r} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not host:
        raise InputError(f"{url!r} is not an address such as http://127.0.0.1:8000")
    if port is not None and not 0 < port < 2**16:
        raise InputError(f"{url!r} is not an address: ports are 1 to 65535")
    return url
