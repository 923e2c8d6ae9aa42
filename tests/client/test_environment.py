"""Variables of the shell that have nothing to do with the server, or that are wrong."""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_client import AsyncClient, Client, InputError, UnreachableError
from tests.client.variables import PROXIES, setenv

Ask = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("no_variables")

BROKEN = {
    "HTTP_PROXY": "nonsense://[",
    "ALL_PROXY": "socks://127.0.0.1:1080/",
    "SSL_CERT_FILE": "/nowhere.pem",
    "SSL_CERT_DIR": "/nowhere",
    "SSLKEYLOGFILE": "/nowhere/keys",
    "REQUESTS_CA_BUNDLE": "/nowhere.pem",
    "CURL_CA_BUNDLE": "/nowhere.pem",
    "NETRC": "/nowhere/netrc",
}


def test_loopback_needs_no_proxy_and_http_no_certificates(
    ask: Ask, loopback: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login")
    setenv(monkeypatch, **BROKEN, HOME=str(tmp_path))
    assert ask(loopback.url, "classify", b"x").results
    monkeypatch.delenv("HOME")
    assert ask(loopback.url.replace("127.0.0.1", "localhost"), "classify", b"x").results


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SSL_CERT_FILE", "which SSL_CERT_FILE names: "),
        ("SSL_CERT_DIR", "^SSL_CERT_DIR names .*, which is not a folder"),
        ("SSLKEYLOGFILE", "^SSLKEYLOGFILE names .* cannot be written"),
    ],
)
def test_https_names_the_variable_that_is_wrong(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "missing" / "file"))
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError, match=message):
            kind("https://127.0.0.1:1")
    (tmp_path / "text").write_text("no certificate")
    monkeypatch.setenv(name, str(tmp_path / "text"))
    if name == "SSLKEYLOGFILE":
        Client("https://127.0.0.1:1")
    else:
        with pytest.raises(InputError, match=message):
            Client("https://127.0.0.1:1")


def test_a_given_file_precedes_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    setenv(monkeypatch, SSL_CERT_FILE="/nowhere.pem", SSL_CERT_DIR="/nowhere")
    Client("https://127.0.0.1", verify=tmp_path / "ca.pem")
    Client("https://127.0.0.1", verify=ssl.create_default_context())


@pytest.fixture
def secure(loopback: Any, tmp_path: Path) -> Iterator[str]:
    """A server with a certificate of `ca.pem`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    loopback.socket = context.wrap_socket(loopback.socket, server_side=True)
    return loopback.url.replace("http:", "https:")


def test_trusts_the_authorities_of_the_environment(
    ask: Ask, secure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    setenv(monkeypatch, SSL_CERT_DIR=str(tmp_path / "empty"), HTTPS_PROXY="nonsense://")
    with pytest.raises(UnreachableError, match="SSL_CERT_DIR decides which authorities are trusted"):
        ask(secure, "classify", b"x")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert ask(secure, "classify", b"x").results


@pytest.mark.parametrize("text", [" {} ", "{}\n", "\t{}\r\n"])
def test_white_space_around_the_address_and_the_key_is_ignored(
    text: str, ask: Ask, loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSERVE_API_KEY", text.format("key"))
    assert ask(text.format(loopback.url), "classify", b"x").results
    assert loopback.headers["X-API-Key"] == "key"


@pytest.mark.parametrize("key", ["a\nb", "ü", "\udcff"])
def test_a_key_that_cannot_be_sent_is_traced_to_its_variable(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSERVE_API_KEY", key)
    for given_key in (None, key):
        with pytest.raises(InputError, match="the API key in COSERVE_API_KEY must be"):
            Client(api_key=given_key)
    with pytest.raises(InputError, match="the API key must be"):
        Client(api_key="ö")


@pytest.mark.parametrize("url", ["http://a b", "http://a\nb:80", "127.0.0.1:8000", "\udcff", "http://x:y"])
def test_an_address_that_is_no_url_is_traced_to_its_variable(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSERVE_URL", url)
    with pytest.raises(InputError, match=r"in COSERVE_URL is not a valid URL") as caught:
        Client(url)
    str(caught.value).encode()


@contextmanager
def one_line_about(variables: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        text = str(error)
        if "\n" in text or not any(name in text for name in variables):
            raise AssertionError(text) from error
        raise


JUNK = ["socks://", "http://", "://", "[", "]", "*", "/", "%", "@", ":", "10.0.0.0/99", "::1/0", "http://%00"]
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(st.sampled_from([*PROXIES, "http_proxy", "no_proxy"]), VALUES | st.sampled_from(JUNK)))
@settings(deadline=None)
def test_no_proxy_setting_gives_anything_but_one_line(variables: dict[str, str]) -> None:
    with mock.patch.dict(os.environ, variables):
        Client("http://127.0.0.1:8000").close()
        for url in ("http://server.example", "http://10.1.2.3", "http://[fd00::1]:8000"):
            with suppress(InputError), one_line_about(variables):
                Client(url).close()
