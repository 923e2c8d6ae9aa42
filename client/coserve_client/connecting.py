"""Connection settings that both clients share."""

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
# Idle connections expire before the server closes them (after 5 s), so that no request is sent on a closing
# one. The other limits are httpx's defaults.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=2)
# None selects the client's own transport: the proxy of HTTP_PROXY cannot reach this machine's loopback.
LOOPBACK_MOUNTS = {"all://127.0.0.1": None, "all://[::1]": None, "all://localhost": None}

File: TypeAlias = str | os.PathLike[str]
Verify: TypeAlias = File | ssl.SSLContext | None
Certificate: TypeAlias = File | tuple[File, File] | None


def httpx_arguments(
    url: str,
    api_key: str | None,
    verify: Verify,
    certificate: Certificate,
    timeout: httpx.Timeout | float,
    headers: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the keyword arguments for httpx's clients.

    Raises:
        InputError: the address, the key, a header or a certificate cannot be used.
    """
    key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise InputError("the API key must be printable ASCII without leading or trailing spaces")
    _check_url(url)
    return {
        "base_url": url,
        "headers": _merge_headers(key, headers or {}),
        "timeout": timeout,
        "verify": _ssl_context(verify, certificate),
        "limits": LIMITS,
        "mounts": LOOPBACK_MOUNTS,
    }


def _merge_headers(key: str | None, headers: Mapping[str, str]) -> httpx.Headers:
    """Combine the key's header with the caller's, which take precedence whatever their case."""
    merged = httpx.Headers({"X-API-Key": key} if key else None)
    try:
        merged.update(headers)
    except UnicodeEncodeError as error:
        raise InputError(f"headers must be ASCII: {error}") from error
    return merged


def _ssl_context(verify: Verify, certificate: Certificate) -> ssl.SSLContext | bool:
    if verify is None and certificate is None:
        return True
    if isinstance(verify, ssl.SSLContext):
        return verify
    try:
        context = ssl.create_default_context(cafile=verify and Path(verify))
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"cannot load PEM certificates from {verify}: {error}") from error
    if certificate is not None:
        files = certificate if isinstance(certificate, tuple) else (certificate,)
        try:
            context.load_cert_chain(files[0], files[-1])
        except (OSError, ssl.SSLError) as error:
            names = " and ".join(map(os.fsdecode, files))
            raise InputError(f"cannot load a PEM certificate and its key from {names}: {error}") from error
    return context


def _check_url(url: str) -> None:
    """Check that the server's address is an HTTP URL.

    Raises:
        InputError: it is not.
    """
    try:
        parsed = httpx.URL(url)
        host = parsed.host
        # Sockets encode host names this way too.
        parsed.raw_host.decode("ascii").encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InputError(f"{url!r} is not a valid URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not host:
        raise InputError(f"{url!r} is not a valid URL; use one like {DEFAULT_URL}")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise InputError(f"{url!r} is not a valid URL: the port must be between 1 and 65535")
