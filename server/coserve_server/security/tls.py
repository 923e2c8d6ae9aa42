"""How connections to the server are encrypted."""

import logging
import ssl
import time
from pathlib import Path

from coserve_server.errors import TlsError
from coserve_server.security.file_stamp import LOOK_S, FileStamp, file_stamp
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)


class RenewedFiles:
    """Gives new connections the certificate, key and authorities that the files hold now.

    For `SSLContext.sni_callback`, which is called in every handshake, also where the client names no host.
    """

    def __init__(self, settings: Settings, context: ssl.SSLContext, look_s: float = LOOK_S) -> None:
        """Begin with the context made of the files; they are looked at once in `look_s` seconds at most."""
        self._settings, self._context, self._look_s = settings, context, look_s
        self._stamps, self._next_look = self._look(), time.monotonic() + look_s

    def __call__(self, connection: ssl.SSLObject, _host: str | None, _context: ssl.SSLContext) -> None:
        """Have a handshake go on with the newest files; broken ones change nothing, and are logged once."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self._look_s
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                self._read()
        connection.context = self._context

    def _look(self) -> list[FileStamp]:
        settings = self._settings
        files = settings.tls_certificate, settings.tls_key, settings.tls_client_authorities
        return [file_stamp(file) for file in files if file is not None]

    def _read(self) -> None:
        try:
            renewed = _context(self._settings)
        except (TlsError, OSError) as error:
            logger.error("%s; new connections get the certificate read before", error)
            return
        if renewed is not None:
            self._context = renewed
            logger.info("TLS: new connections get the renewed %s", self._settings.tls_certificate)


def server_context(settings: Settings, look_s: float = LOOK_S) -> ssl.SSLContext | None:
    """The server's certificate as its files are, renewed ones too; None where it has none.

    Raises:
        TlsError: a file is not what its setting says, or the key is not the certificate's.
    """
    context = _context(settings)
    if context is not None:
        context.sni_callback = RenewedFiles(settings, context, look_s)
    return context


def _context(settings: Settings) -> ssl.SSLContext | None:
    """Python's safe defaults (TLS 1.2 and later) with the server's certificate; None where it has none."""
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
        # A resumed session is not checked anew, against authorities that may have changed.
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


def _fault(key: Path, certificate: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of the certificate in {certificate}"
    if "ENCRYPTED" in key.read_text("ascii", "replace"):
        return f"tls_key: {key} is encrypted, and tls_key_password is not its password"
    return f"tls_key: {key} has no private key in PEM format"
