"""TLS for connections to the server."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import SecretStr

from coserve_server.errors import TlsError
from coserve_server.files import check_regular, describe, read_bytes
from coserve_server.security.file_stamp import FileStamp, read_stamp
from coserve_server.security.recheck import CHECK_INTERVAL_S, Recheck
from coserve_server.settings import Settings

MAX_KEY_BYTES = 2**20

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Renewal(Generic[T]):
    """An object made from the certificate, key and authorities, and made anew when these files change."""

    def __init__(self, settings: Settings, make: Callable[[Settings], T], interval_s: float) -> None:
        """Make the object; check the files for changes at most once in `interval_s` seconds.

        Raises:
            TlsError: a file is broken, or the key does not belong to the certificate.
        """
        self._settings = settings
        self._make = make
        self._recheck = Recheck(self._check, interval_s, f"tls_certificate: {settings.tls_certificate}")
        self._stamps = self._read_stamps()
        self._current = make(settings)

    def get(self) -> T:
        """Return the object made from the newest files; called in handshakes."""
        self._recheck.run_in_handshake()
        return self._current

    def _check(self) -> None:
        """Make the object anew if the files changed; broken files change nothing and are logged once."""
        stamps = self._read_stamps()
        if stamps != self._stamps:
            self._stamps = stamps
            self._renew()

    def _read_stamps(self) -> list[FileStamp]:
        settings = self._settings
        files = (settings.tls_certificate, settings.tls_key, settings.tls_client_authorities)
        return [read_stamp(file) for file in files if file is not None]

    def _renew(self) -> None:
        try:
            self._current = self._make(self._settings)
        # Whatever is wrong with the new files must not keep clients from connecting.
        except Exception as error:
            logger.error("%s; new connections still use the previous certificate", error)
        else:
            logger.info("TLS: new connections use the renewed %s", self._settings.tls_certificate)


def server_context(settings: Settings, interval_s: float = CHECK_INTERVAL_S) -> ssl.SSLContext | None:
    """Return a context that always uses the certificate now on disk; None if no certificate is set.

    Raises:
        TlsError: a file is broken, or the key does not belong to the certificate.
    """
    if settings.tls_certificate is None:
        return None
    renewal = Renewal(settings, make_context, interval_s)

    def use_newest(connection: ssl.SSLObject, _host: str | None, _context: ssl.SSLContext) -> None:
        connection.context = renewal.get()

    context = renewal.get()
    # Called in every handshake, even if the client names no host.
    context.sni_callback = use_newest
    return context


def make_context(settings: Settings) -> ssl.SSLContext:
    """Make a context with Python's safe defaults (TLS 1.2 and later).

    Raises:
        TlsError: a file is broken, or the key does not belong to the certificate.
    """
    certificate = settings.tls_certificate
    key = settings.tls_key
    assert certificate is not None
    assert key is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    password = settings.tls_key_password
    load_pair(context, ("tls_certificate", certificate), ("tls_key", key), password)
    if settings.tls_client_authorities is not None:
        trust(context, settings.tls_client_authorities, "tls_client_authorities")
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not be checked against authorities that may have changed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def trust(context: ssl.SSLContext, file: Path, setting: str) -> None:
    """Trust the certificates in a file.

    Raises:
        TlsError: it has none, or cannot be read.
    """
    try:
        # OpenSSL would wait for a pipe.
        check_regular(file)
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise TlsError(f"{setting}: {file} has no certificate in PEM format") from error
    except OSError as error:
        raise TlsError(f"{setting}: {file} cannot be read: {describe(error)}") from error


def load_pair(
    context: ssl.SSLContext,
    certificate: tuple[str, Path],
    key: tuple[str, Path],
    password: SecretStr | None = None,
) -> None:
    """Load a certificate and its private key, each given as its setting and file.

    Raises:
        TlsError: a file is broken or cannot be read, or the key does not belong to the certificate.
    """
    # Check the certificate alone first: OpenSSL does not say which of the two files is broken.
    trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate[1], certificate[0])
    setting, file = key
    try:
        check_regular(file)
        # `str` returns an empty password, which keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate[1], file, password.get_secret_value() if password else str)
    except ssl.SSLError as error:
        raise TlsError(f"{setting}: {file} {_explain(setting, file, certificate[1], error)}") from error
    except OSError as error:
        raise TlsError(f"{setting}: {file} cannot be read: {describe(error)}") from error
    # Passwords have at most 1024 bytes.
    except ValueError as error:
        raise TlsError(f"{setting}_password: {error}") from error


def check_triton_files(settings: Settings) -> None:
    """Check the certificates for connections to Triton: gRPC would only fail to connect.

    Raises:
        TlsError: a file is broken or cannot be read, or the key does not belong to the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.triton_root_certificates is not None:
        trust(context, settings.triton_root_certificates, "triton_root_certificates")
    certificate = settings.triton_client_certificate
    key = settings.triton_client_key
    if certificate is not None and key is not None:
        load_pair(context, ("triton_client_certificate", certificate), ("triton_client_key", key))


def _explain(setting: str, key: Path, certificate: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"is not the key of the certificate in {certificate}"
    try:
        encrypted = b"ENCRYPTED" in read_bytes(key, MAX_KEY_BYTES)
    except OSError:
        encrypted = False
    if encrypted:
        if setting == "tls_key":
            return "is encrypted, and tls_key_password is not its password"
        return "is encrypted, which is only possible for tls_key"
    return "has no private key in PEM format"
