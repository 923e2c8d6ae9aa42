"""Read the connection settings of the environment: proxies, certificate authorities and the API key.

httpx would read most of these variables itself, but for every address at once: an unusable proxy or
certificate file then breaks connections that need neither.
"""

import importlib.util
import ipaddress
import os
import re
import socket
import ssl
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import certifi
import httpx

from coserve_client.errors import InputError

API_KEY_VARIABLE = "COSERVE_API_KEY"
AUTHORITY_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
KEY_LOG_VARIABLE = "SSLKEYLOGFILE"
PROXY_EXAMPLE = "http://proxy.example:3128"

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# An entry of NO_PROXY that is a name or an address, possibly with a port.
_NO_PROXY_ENTRY = re.compile(r"(?:[a-z]+://)?(?:\*?\.)?(\[[^\]]*\]|[^:/\[\]]+)(?::(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class ProxySetting:
    """A proxy, and the variable that names it."""

    url: httpx.URL
    variable: str


def find_api_key(given: str | None) -> str:
    """Return the API key to send, or an empty string: the given one, or else the value of `COSERVE_API_KEY`.

    White space around it is ignored: files and secrets often end with a line break.

    Raises:
        InputError: no header can carry the key.
    """
    if given is not None and not isinstance(given, str):
        raise InputError(f"the API key must be a string, not {type(given).__name__}")
    environment = os.environ.get(API_KEY_VARIABLE)
    key = ((environment or "") if given is None else given).strip()
    if not (key.isascii() and key.isprintable()):
        origin = f" in {API_KEY_VARIABLE}" if given in (None, environment) else ""
        raise InputError(f"the API key{origin} must be one line of printable ASCII")
    return key


def find_proxy(url: httpx.URL) -> ProxySetting | None:
    """Return the proxy for an address, or None to connect directly.

    `HTTP_PROXY` and `HTTPS_PROXY` precede `ALL_PROXY`. Loopback and hosts in `NO_PROXY` need no proxy.

    Raises:
        InputError: the proxy cannot be used.
    """
    if _is_loopback(url.host):
        return None
    proxies = urllib.request.getproxies()
    kind = next((kind for kind in (url.scheme, "all") if proxies.get(kind)), None)
    if kind is None or _is_excepted(url, proxies.get("no", "")):
        return None
    variable = _variable(f"{kind}_proxy")
    return ProxySetting(_proxy_url(proxies[kind].strip(), variable, url.host), variable)


def load_authorities(verify: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities of a PEM file.

    Args:
        verify: the file; None for `SSL_CERT_FILE` and `SSL_CERT_DIR`, or else certifi's.

    Raises:
        InputError: the file cannot be loaded, or a variable names something unusable.
    """
    _check_key_log()
    file, folder = (None, None) if verify is not None else map(os.environ.get, AUTHORITY_VARIABLES)
    if folder and not any(map(os.path.isdir, folder.split(os.pathsep))):
        raise InputError(f"SSL_CERT_DIR names {folder}, which is not a folder; correct or unset it")
    default = file or (None if folder else certifi.where())
    source = default if verify is None else verify
    try:
        return ssl.create_default_context(
            cafile=None if source is None else Path(source), capath=folder or None
        )
    except (OSError, ValueError) as error:
        origin = ", which SSL_CERT_FILE names" if file else ""
        raise InputError(f"cannot load PEM certificates from {source}{origin}: {error}") from error


def _check_key_log() -> None:
    """Check that the file can be written to which Python writes TLS keys for debugging.

    Raises:
        InputError: it cannot.
    """
    if file := os.environ.get(KEY_LOG_VARIABLE):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = file
        except OSError as error:
            raise InputError(
                f"{KEY_LOG_VARIABLE} names {file}, which cannot be written ({error.strerror}); unset it"
            ) from error


def _proxy_url(value: str, variable: str, host: str) -> httpx.URL:
    # The value may contain a password, so no message shows it.
    remedy = f"correct or unset {variable}, or add {host} to NO_PROXY"
    try:
        proxy = httpx.URL(value if "://" in value else f"http://{value}")
        check_address(proxy)
    except (httpx.InvalidURL, ValueError):
        raise InputError(f"{variable} is not a valid proxy address like {PROXY_EXAMPLE}; {remedy}") from None
    if proxy.scheme not in ("http", "https", "socks5", "socks5h"):
        raise InputError(
            f"{variable} names a proxy of type {proxy.scheme}://; only http://, https:// and socks5:// are "
            f"supported; {remedy}"
        )
    if proxy.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise InputError(
            f"{variable} names a SOCKS proxy, which needs a package: pip install 'httpx[socks]'; or {remedy}"
        )
    return proxy


def check_address(url: httpx.URL) -> None:
    """Check that a URL has a host and a port that sockets accept.

    Raises:
        ValueError: it does not.
    """
    if not url.host:
        raise ValueError("it names no host")
    if ":" not in url.host and not re.fullmatch(rb"[\w.-]+", url.raw_host):
        raise ValueError(f"{url.host!r} is not a host name")
    # Sockets encode host names this way too.
    url.raw_host.decode("ascii").encode("idna")
    if url.port is not None and not 0 < url.port < 2**16:
        raise ValueError("the port must be between 1 and 65535")


def _is_excepted(url: httpx.URL, no_proxy: str) -> bool:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return bool(urllib.request.proxy_bypass(url.host)) or any(
        _matches(entry, url.host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry
    )


def _matches(entry: str, host: str, port: int) -> bool:
    """Return whether an entry of NO_PROXY covers a host.

    Args:
        entry: `*`, a network such as `10.0.0.0/8`, or an address or a domain with an optional port.
    """
    if entry == "*":
        return True
    address = _ip_address(host)
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    else:
        return address is not None and address in network
    parsed = _NO_PROXY_ENTRY.fullmatch(entry)
    if parsed is None or int(parsed[2] or port) != port:
        return False
    name = parsed[1].lower()
    if listed := _ip_address(name.strip("[]")):
        return address == listed
    return host == name or host.endswith(f".{name}")


def _is_loopback(host: str) -> bool:
    name = host.rstrip(".")
    address = _ip_address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _ip_address(host: str) -> IPAddress | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # Sockets also accept short forms such as 127.1.
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _variable(name: str) -> str:
    """Return how the environment spells a variable; lower case takes precedence."""
    spelled = (other for other in sorted(os.environ, reverse=True) if other.lower() == name)
    return next((other for other in spelled if os.environ[other]), "the system's proxy setting")
