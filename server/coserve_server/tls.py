"""How connections to the server are encrypted."""

import ssl
from pathlib import Path

from coserve_server.errors import TlsError
from coserve_server.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Python's safe defaults (TLS 1.2 and later) with the server's certificate; None where it has none.

    Raises:
        TlsError: a file is not what its setting says, or the key is not the certificate's.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    # Only here does OpenSSL say which of the two files is the broken one.
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, "tls_certificate")
    password = settings.tls_key_password
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password.get_secret_value() if password else str)
    except ssl.SSLError as error:
        raise TlsError(_fault(key, certificate, error)) from error
    except OSError as error:
        raise TlsError(f"tls_key: {key} cannot be read: {error.strerror}") from error
    if settings.tls_client_authorities is not None:
        _trust(context, settings.tls_client_authorities, "tls_client_authorities")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _trust(context: ssl.SSLContext, file: Path, setting: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise TlsError(f"{setting}: {file} has no certificate in PEM format") from error
    except OSError as error:
        raise TlsError(f"{setting}: {file} cannot be read: {error.strerror}") from error


def _fault(key: Path, certificate: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of the certificate in {certificate}"
    if "ENCRYPTED" in key.read_text("ascii", "replace"):
        return f"tls_key: {key} is encrypted, and tls_key_password is not its password"
    return f"tls_key: {key} has no private key in PEM format"
