"""TLS for connections to the server."""

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from coserve_server.errors import TlsError
from coserve_server.security.file_stamp import CHECK_INTERVAL_S, FileStamp, read_stamp
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Renewal(Generic[T]):
    """What is made from the certificate, key and authorities now on disk."""

    def __init__(self, settings: Settings, make: Callable[[Settings], T], interval_s: float) -> None:
        """Make it from the files now; check these at most once in `interval_s` seconds.

        Raises:
            TlsError: a file is broken, or the key does not belong to the certificate.
        """
        self._settings = settings
        self._make = make
        self._interval_s = interval_s
        self._stamps = self._read_stamps()
        self._next_check = time.monotonic() + interval_s
        self._current = make(settings)

    def get(self) -> T:
        """Return the newest; broken files change nothing and are logged once."""
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + self._interval_s
            stamps = self._read_stamps()
            if stamps != self._stamps:
                self._stamps = stamps
                self._renew()
        return self._current

    def _read_stamps(self) -> list[FileStamp]:
        settings = self._settings
        files = (settings.tls_certificate, settings.tls_key, settings.tls_client_authorities)
        return [read_stamp(file) for file in files if file is not None]

    def _renew(self) -> None:
        try:
            self._current = self._make(self._settings)
        except (TlsError, OSError) as error:
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
    # Check the certificate alone first: OpenSSL does not say which of the two files is broken.
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, "tls_certificate")
    password = settings.tls_key_password
    try:
        # `str` returns an empty password, which keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password.get_secret_value() if password else str)
    except ssl.SSLError as error:
        raise TlsError(_explain(key, certificate, error)) from error
    except OSError as error:
        raise TlsError(f"tls_key: {key} cannot be read: {error.strerror}") from error
    if settings.tls_client_authorities is not None:
        _trust(context, settings.tls_client_authorities, "tls_client_authorities")
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not be checked against authorities that may have changed.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _trust(context: ssl.SSLContext, file: Path, setting: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise TlsError(f"{setting}: {file} has no certificate in PEM format") from error
    except OSError as error:
        raise TlsError(f"{setting}: {file} cannot be read: {error.strerror}") from error


def _explain(key: Path, certificate: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of the certificate in {certificate}"
    if "ENCRYPTED" in key.read_text("ascii", "replace"):
        return f"tls_key: {key} is encrypted, and tls_key_password is not its password"
    return f"tls_key: {key} has no private key in PEM format"
