"""The address to listen on, and who may connect."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from coserve_server.settings.section import File, Section, split_list

OWN_PATHS = frozenset(
    {"v1", "v2", "healthz", "readyz", "metrics", "docs", "openapi.json", "static-offline-docs", "page"}
)
"""First parts of the server's own paths."""


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^/\s,?#@]+", origin):
        raise ValueError(f"{origin!r} is neither an origin such as https://a.org nor *")
    return origin


def _check_root_path(path: str) -> str:
    if path and not re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII):
        raise ValueError(f"{path!r} is not a path prefix such as /images, without a slash at its end")
    # With such a prefix, a path would be ambiguous: with the prefix or without it.
    if path and path.split("/")[1] in OWN_PATHS:
        raise ValueError(f"{path!r} begins like a path of the server itself; choose another")
    return path


def _check_proxy(proxy: str) -> str:
    if proxy == "*":
        return proxy
    try:
        return str(ipaddress.ip_network(proxy)) if "/" in proxy else str(ipaddress.ip_address(proxy))
    except ValueError as error:
        raise ValueError(
            f"{proxy!r} is neither an address such as 10.0.0.7, nor a network such as 10.0.0.0/8, nor *"
        ) from error


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's loopback; no name but localhost counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ListeningSettings(Section):
    """The address, and who may connect."""

    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach requires `api_keys_file`,
    `tls_client_authorities` or `allow_public`."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port to listen on; 0 picks a free one, which is printed."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """TCP port for gRPC at the same address; 0 picks a free one, which is printed. Without it there is no
    gRPC."""
    root_path: Annotated[str, AfterValidator(_check_root_path)] = ""
    """Path prefix under which a proxy offers the server, such as `/images`, whether the proxy removes it from
    requests or not."""
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_proxy)], ...], NoDecode, BeforeValidator(split_list)
    ] = ("127.0.0.1", "::1")
    """Addresses or networks of proxies, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto`
    logs and traces trust; `*` for all."""
    allow_public: bool = False
    """Whether to serve a public address without authentication."""
    api_keys_file: File | None = None
    """File of API keys, written by `coserve keys`; without it requests need no key."""
    tls_certificate: File | None = None
    """PEM file of the server's certificate, with its intermediates; without it the server uses plain HTTP."""
    tls_key: File | None = None
    """PEM file of the private key of `tls_certificate`."""
    tls_key_password: SecretStr | None = None
    """Password of `tls_key`, if it is encrypted."""
    tls_client_authorities: File | None = None
    """PEM file of the certificate authorities that clients' certificates must come from (mutual TLS)."""
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode, BeforeValidator(split_list)
    ] = ()
    """Origins, separated by commas, whose web pages may call the server from a browser; `*` for all."""

    @property
    def public(self) -> bool:
        """Return whether other machines may reach the address; any name but localhost counts as reachable."""
        return not is_loopback(self.host)

    @model_validator(mode="after")
    def _check_ports(self) -> "ListeningSettings":
        if self.port and self.grpc_port == self.port:
            raise ValueError(f"grpc_port: {self.port} is the port for HTTP; gRPC needs one of its own")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> "ListeningSettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_certificate is None and (self.tls_client_authorities or self.tls_key_password):
            raise ValueError("tls_certificate: tls_client_authorities and tls_key_password need it")
        return self

    @model_validator(mode="after")
    def _check_authentication(self) -> "ListeningSettings":
        if self.public and not (self.api_keys_file or self.tls_client_authorities or self.allow_public):
            raise ValueError(
                f"host: other machines may reach {self.host!r}, and anyone there could use the server; set "
                "api_keys_file (see coserve keys create), or allow_public (--allow-public) if intended"
            )
        return self
