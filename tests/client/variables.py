"""Variables of the shell that the client reads besides its own."""

import pytest

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


def setenv(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set variables until the end of the test."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
