"""Proxies that the shell's variables name."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import httpx
import pytest

from coserve_client import AsyncClient, Client, CoserveError, InputError, UnreachableError
from coserve_client.environment import find_proxy
from tests.client.variables import setenv

Ask = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("no_variables")


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
