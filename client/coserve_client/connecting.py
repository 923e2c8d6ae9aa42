"""Connection settings that both clients share."""

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import httpx

from coserve_client.environment import (
    AUTHORITY_VARIABLES,
    check_address,
    find_api_key,
    find_proxy,
    load_authorities,
)
from coserve_client.errors import InputError, Route

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(connect=5.0, read=60.0, write=60.0, pool=60.0)
# Sockets wait for a 32-bit number of milliseconds: a longer timeout may overflow to one that is over at once.
LONGEST_SECONDS = 2**31 // 1000 - 1
PHASES = ("connect", "read", "write", "pool")
URL_VARIABLE = "COSERVE_URL"
MAX_CONNECTIONS = 100
# Idle connections expire before servers and balancers usually close them, so that a request rarely meets a
# closing one and is sent twice. The other limits are httpx's defaults.
LIMITS = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=20, keepalive_expiry=2)
HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Each request has its own; the client's would replace them.
BODY_HEADERS = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding"})
CONTROL_CHARACTERS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

File: TypeAlias = str | os.PathLike[str]
Verify: TypeAlias = File | ssl.SSLContext | None
Certificate: TypeAlias = File | tuple[File, File] | None
Timeout: TypeAlias = httpx.Timeout | float | None


@dataclass(frozen=True)
class Connecting:
    """How a client connects.

    Attributes:
        requests: keyword arguments of httpx's clients that all requests share.
        network: keyword arguments of their transports.
        route: the server and the proxy in front of it, for error messages.
    """

    requests: dict[str, Any]
    network: dict[str, Any]
    route: Route


def connect(
    url: str,
    api_key: str | None,
    verify: Verify,
    certificate: Certificate,
    timeout: Timeout,
    headers: Mapping[str, str] | None,
    use_proxy: bool,
) -> Connecting:
    """Decide how to connect to a server.

    Args:
        use_proxy: whether to use the environment's proxy, if it names one for this address.

    Raises:
        InputError: the address, the key, a header, a certificate, a timeout or an environment variable cannot
            be used.
    """
    key = find_api_key(api_key)
    server = _parse_url(url)
    proxy = find_proxy(server) if use_proxy else None
    secure = server.scheme == "https" or (proxy is not None and proxy.url.scheme == "https")
    context = tls_context(verify, certificate, secure)
    named = [name for name in AUTHORITY_VARIABLES if verify is None and os.environ.get(name)]
    # Messages must not show a password in the address.
    shown = str(server.copy_with(userinfo=b""))
    route = Route(shown, proxy.variable if proxy else None, " and ".join(named) or None)
    requests = {
        "base_url": server,
        "headers": _merge_headers(key, headers or {}),
        "timeout": _read_timeout(timeout),
        # httpx would look at all proxies of the environment.
        "trust_env": False,
    }
    network = {
        "verify": context,
        "limits": LIMITS,
        "proxy": httpx.Proxy(proxy.url, ssl_context=_for_proxy(proxy.url, context)) if proxy else None,
    }
    return Connecting(requests, network, route)


def tls_context(verify: Verify, certificate: Certificate, secure: bool) -> ssl.SSLContext:
    """Return the TLS context of a connection.

    Args:
        secure: whether the connection uses TLS. If not, the environment's authorities are not loaded, and the
            context trusts nobody.

    Raises:
        InputError: the authorities or the certificate cannot be loaded.
    """
    if not isinstance(verify, (str, os.PathLike, ssl.SSLContext, type(None))):
        raise InputError(f"verify must be a PEM file or an ssl.SSLContext, not {verify!r}")
    if isinstance(verify, ssl.SSLContext):
        if certificate is not None:
            raise InputError("certificate must be loaded into the ssl.SSLContext, with load_cert_chain")
        return verify
    if not secure and verify is None and certificate is None:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = load_authorities(verify)
    if certificate is not None:
        files = certificate if isinstance(certificate, tuple) else (certificate,)
        if len(files) not in (1, 2) or not all(isinstance(file, (str, os.PathLike)) for file in files):
            raise InputError(
                "certificate must be a PEM file, or a tuple of the certificate's file and the key's"
            )
        try:
            context.load_cert_chain(files[0], files[-1])
        # ValueError: a null character.
        except (OSError, ValueError) as error:
            names = " and ".join(map(os.fsdecode, files))
            raise InputError(f"cannot load a PEM certificate and its key from {names}: {error}") from error
    return context


def _for_proxy(proxy: httpx.URL, context: ssl.SSLContext) -> ssl.SSLContext | None:
    # httpx refuses a context for a proxy that is reached without TLS.
    return context if proxy.scheme == "https" else None


def _merge_headers(key: str, headers: Mapping[str, str]) -> httpx.Headers:
    """Combine the key's header with the caller's, which take precedence whatever their case."""
    if not isinstance(headers, Mapping):
        raise InputError(f"headers must be a mapping of names to values, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            # The value may be a secret.
            raise InputError(f"the header {name!r} and its value must be strings, not {type(value).__name__}")
        if name.lower() in BODY_HEADERS:
            raise InputError(f"the header {name!r} belongs to each request's body: leave it out")
    merged = httpx.Headers({"X-API-Key": key} if key else None)
    try:
        merged.update(headers)
    except UnicodeEncodeError as error:
        raise InputError(f"headers must be ASCII: {error}") from error
    for raw, content in merged.raw:
        # RFC 9110, sections 5.1 and 5.5; httpx would report it as a server that cannot be reached.
        if not HEADER_NAME.fullmatch(raw) or CONTROL_CHARACTERS.search(content):
            raise InputError(
                f"the header {raw.decode(errors='replace')!r} has characters that cannot be sent"
            )
    return merged


def _read_timeout(timeout: Timeout) -> httpx.Timeout:
    """Return a timeout that sockets accept.

    Raises:
        InputError: a value is not a number, or not positive.
    """
    parts = timeout.as_dict() if isinstance(timeout, httpx.Timeout) else dict.fromkeys(PHASES, timeout)
    seconds: dict[str, float | None] = {}
    value: Any
    for phase, value in parts.items():
        is_number = isinstance(value, Real)
        # NaN is not positive either.
        if value is not None and not (is_number and value > 0):
            raise InputError(
                f"timeout must be a positive number of seconds, or None for no limit, not {value!r}"
            )
        seconds[phase] = None if value is None else float(min(value, LONGEST_SECONDS))
    return httpx.Timeout(**seconds)


def _parse_url(url: str) -> httpx.URL:
    """Return the server's address, without white space around it.

    Raises:
        InputError: it is not an HTTP URL, or has a query or a fragment.
    """
    if not isinstance(url, str):
        raise InputError(f"the server's address must be a string, not {type(url).__name__}")
    origin = f" in {URL_VARIABLE}" if url == os.environ.get(URL_VARIABLE) else ""
    reason = f"use one like {DEFAULT_URL}"
    try:
        parsed = httpx.URL(url.strip())
        if "?" in url or "#" in url:
            # httpx would append the paths to the query, even to an empty one.
            raise ValueError("it must end before ? and #")
        if parsed.scheme in ("http", "https") and parsed.host:
            check_address(parsed)
            return parsed
    except (httpx.InvalidURL, ValueError) as error:
        # A reason may quote a part of the password.
        reason = reason if "@" in url else str(error)
    raise InputError(f"{_hide_password(url)!r}{origin} is not a valid URL: {reason}")


def _hide_password(url: str) -> str:
    # Without a scheme, the address is not valid, but may have a password all the same.
    return re.sub(r"\A(\s*[a-z]+://)?.*@", r"\1***@", url, flags=re.DOTALL | re.IGNORECASE)
