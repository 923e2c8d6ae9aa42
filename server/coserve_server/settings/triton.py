"""Connections to Triton servers."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, model_validator

from coserve_server.settings.section import File, Milliseconds, Section


def _check_addresses(text: str) -> str:
    for address in text.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"{address.strip()!r} is not HOST:PORT of Triton's gRPC service, such as 127.0.0.1:8001"
            )
    return text


def _check_token(token: SecretStr) -> SecretStr:
    """Drop the line end that files and secret stores add; gRPC takes no other control characters either."""
    text = token.get_secret_value().strip()
    if not text.isascii() or not text.isprintable():
        raise ValueError("a token is printable ASCII")
    return SecretStr(text)


class TritonSettings(Section):
    """How to reach Triton servers."""

    triton_url: Annotated[str, AfterValidator(_check_addresses)] | None = None
    """`HOST:PORT` of each Triton server's gRPC service, separated by commas."""
    triton_refresh_ms: Milliseconds = Field(500, ge=10)
    """Time between checks of what each Triton server has loaded."""
    triton_shared_memory_mib: int = Field(0, ge=0)
    """Shared memory for sending images to Triton servers on this machine, in MiB; 0 for none."""
    triton_tls: bool = False
    """Whether to encrypt the connections to Triton."""
    triton_root_certificates: File | None = None
    """PEM file of certificate authorities to trust for Triton; by default gRPC's own list."""
    triton_client_certificate: File | None = None
    """PEM file of the client certificate that the server presents to Triton."""
    triton_client_key: File | None = None
    """PEM file of the private key of `triton_client_certificate`."""
    triton_token: Annotated[SecretStr, AfterValidator(_check_token)] | None = None
    """Bearer token sent with every call to Triton; requires `triton_tls`."""

    @property
    def triton_addresses(self) -> list[str]:
        """Return HOST:PORT of each Triton server."""
        return [address.strip() for address in (self.triton_url or "").split(",")]

    @model_validator(mode="after")
    def _check_triton_tls(self) -> "TritonSettings":
        certificates = (
            self.triton_root_certificates,
            self.triton_client_certificate,
            self.triton_client_key,
            self.triton_token,
        )
        if not self.triton_tls and any(value is not None for value in certificates):
            raise ValueError("triton_tls: certificates and the token need TLS; set it to true")
        if (self.triton_client_certificate is None) != (self.triton_client_key is None):
            raise ValueError("triton_client_certificate and triton_client_key go together")
        return self
