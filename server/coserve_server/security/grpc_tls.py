"""TLS for gRPC: the same files as for HTTPS."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from coserve_server.errors import TlsError
from coserve_server.security.recheck import CHECK_INTERVAL_S
from coserve_server.security.tls import Renewal, make_context
from coserve_server.settings import Settings

PROBE_HOST = "127.0.0.1"


def server_credentials(
    settings: Settings, interval_s: float = CHECK_INTERVAL_S
) -> grpc.ServerCredentials | None:
    """Return credentials that always use the certificate now on disk; None if no certificate is set.

    Raises:
        TlsError: a file is broken, the key does not belong to the certificate, or gRPC cannot use them.
    """
    if settings.tls_certificate is None:
        return None
    renewal = Renewal(settings, _read_files, interval_s)
    used = renewal.get()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Return the newest certificate in a handshake; None if it is the last one."""
        nonlocal used
        newest = renewal.get()
        if newest is used:
            return None
        used = newest
        return newest

    return grpc.dynamic_ssl_server_credentials(
        used,
        fetch,  # type: ignore[arg-type]  # gRPC's manual allows None
        require_client_authentication=settings.tls_client_authorities is not None,
    )


def _read_files(settings: Settings) -> grpc.ServerCertificateConfiguration:
    # It says what is wrong with a file; gRPC does not.
    make_context(settings)
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    key = settings.tls_key.read_bytes()
    if b"ENCRYPTED" in key and settings.tls_key_password is not None:
        key = _decrypt(key, settings.tls_key_password.get_secret_value().encode())
    authorities = settings.tls_client_authorities
    configuration = grpc.ssl_server_certificate_configuration(
        [(key, settings.tls_certificate.read_bytes())],
        root_certificates=authorities.read_bytes() if authorities else None,
    )
    _try(configuration, settings.tls_certificate)
    return configuration


def _try(configuration: grpc.ServerCertificateConfiguration, certificate: Path) -> None:
    """Use a certificate for a port of its own: in a handshake, gRPC would pass over one that it cannot use.

    Raises:
        TlsError: gRPC cannot use the certificate.
    """
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        server.add_insecure_port(f"{PROBE_HOST}:0")
    except RuntimeError as error:
        raise TlsError(
            f"tls_certificate: gRPC cannot try {certificate}: {PROBE_HOST} has no free port"
        ) from error
    try:
        server.add_secure_port(
            f"{PROBE_HOST}:0", grpc.dynamic_ssl_server_credentials(configuration, lambda: configuration)
        )
    except RuntimeError as error:
        raise TlsError(
            f"tls_certificate: gRPC cannot use {certificate}: its TLS library knows fewer kinds of keys than "
            "HTTPS's; RSA and P-256 work"
        ) from error
    finally:
        server.stop(None)


def _decrypt(key: bytes, password: bytes) -> bytes:
    """Decrypt a private key, which gRPC cannot do; return one that is not encrypted as it is."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    try:
        decrypted = load_pem_private_key(key, password)
    # Only a comment had the word; TLS for HTTP has accepted the pair.
    except TypeError:
        return key
    return decrypted.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
