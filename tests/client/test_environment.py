"""Variables of the shell that have nothing to do with the server, or that are wrong."""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_client import AsyncClient, Client, CoserveError, InputError, UnreachableError
from coserve_client.environment import find_proxy

Ask = Callable[..., Any]

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
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


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def setenv(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_loopback_needs_no_proxy_and_http_no_certificates(
    ask: Ask, loopback: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login")
    setenv(monkeypatch, **BROKEN, HOME=str(tmp_path))
    assert ask(loopback.url, "classify", b"x").results
    monkeypatch.delenv("HOME")
    assert ask(loopback.url.replace("127.0.0.1", "localhost"), "classify", b"x").results


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1.2.3",
        "127.1",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::]",
    ],
)
def test_loopback_in_every_spelling(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, ALL_PROXY="http://proxy:3128")
    assert find_proxy(httpx.URL(f"http://{host}:8000")) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        ("*", True),
        ("other.example", False),
        ("server.example", True),
        ("SERVER.example", True),
        ("example", True),
        (".example", True),
        ("*.example", True),
        ("erver.example", False),
        ("a.example, server.example", True),
        ("a.example server.example", True),
        ("server.example:8000", True),
        ("server.example:80", False),
        ("http://server.example", True),
        (",,", False),
        ("[", False),
    ],
)
def test_no_proxy_by_name(no_proxy: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, HTTP_PROXY="http://proxy:3128", NO_PROXY=no_proxy)
    assert (find_proxy(httpx.URL("http://server.example:8000")) is None) is direct


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:8000", True),
        ("10.1.2.3", "10.1.2.3:80", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.9/24", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "fd00::/8", False),
        ("[fd00::5]", "fd00::/8", True),
        ("[fd00::5]", "fd00:0::5", True),
        ("[fd00::5]", "[fd00::5]", True),
        ("[fd00::5]", "[fd00::5]:8000", True),
        ("[fd00::5]", "[fd00::5]:1", False),
        ("server.example", "10.0.0.0/8", False),
    ],
)
def test_no_proxy_by_address(host: str, no_proxy: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, HTTP_PROXY="http://proxy:3128", NO_PROXY=no_proxy)
    assert (find_proxy(httpx.URL(f"http://{host}:8000")) is None) is direct


def test_the_most_specific_variable_counts_and_lower_case_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(url: str) -> tuple[str, str] | None:
        proxy = find_proxy(httpx.URL(url))
        return proxy and (str(proxy.url), proxy.variable)

    http = "http://server.example"
    https = "https://server.example"
    setenv(monkeypatch, ALL_PROXY="all:1")
    assert used(http) == used(https) == ("http://all:1", "ALL_PROXY")
    setenv(monkeypatch, HTTP_PROXY="http://upper:1")
    assert used(http) == ("http://upper:1", "HTTP_PROXY")
    setenv(monkeypatch, http_proxy="http://lower:1")
    assert used(http) == ("http://lower:1", "http_proxy")
    assert used(https) == ("http://all:1", "ALL_PROXY")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "value",
    [
        "socks://127.0.0.1:1080/",
        "socks4://127.0.0.1:1080",
        "ftp://proxy:1",
        "http://",
        "http://:3128",
        "http://proxy:99999",
        "http://[::1",
        "proxy:none",
        "http://user:secret@a..b:1",
        "http://user:secret@proxy:port",
        "not a proxy",
        "\udcff",
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    for kind in (Client, AsyncClient):
        with pytest.raises(InputError, match=rf"^{name} .* add server\.example to NO_PROXY$") as caught:
            kind("http://server.example:8000")
        assert "secret" not in str(caught.value)
    assert name == "ALL_PROXY" or find_proxy(httpx.URL("https://server.example")) is None


def test_socks_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(InputError, match=r"^ALL_PROXY .*pip install 'httpx\[socks\]'"),
    ):
        Client("http://server.example")


def test_goes_through_the_proxy(ask: Ask, loopback: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", loopback.url)
    assert ask("http://server.example", "classify", b"x").results
    loopback.statuses = [407]
    with pytest.raises(
        CoserveError, match=r"server\.example/v1/classify, or the proxy in HTTP_PROXY, answered 407"
    ):
        ask("http://server.example", "classify", b"x")
    loopback.statuses = [502]
    with pytest.raises(CoserveError, match="or the proxy in HTTP_PROXY, answered Bad Gateway"):
        ask("http://server.example", "classify", b"x")


def test_a_proxy_that_refuses_https_is_named(
    ask: Ask, loopback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", loopback.url)
    with pytest.raises(UnreachableError, match=r"through the proxy in HTTPS_PROXY failed: 501"):
        ask("https://server.example", "classify", b"x")


def test_a_given_transport_needs_no_proxy(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://")
    assert ask(lambda _: httpx.Response(200), "live", options={"url": "http://server.example"})


@pytest.mark.parametrize("url", ["http://server.example", "https://server.example"])
def test_a_proxy_that_does_not_answer_is_named(ask: Ask, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"through the proxy in ALL_PROXY \(.*NO_PROXY$"):
        ask(url, "classify", b"x")
    assert ask(url, "live") is False


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
