"""Settings of a client that cannot be used are refused when it is made."""

import asyncio
import math
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from coserve_client import AsyncClient, Client, CoserveError, InputError
from coserve_client.connecting import connect

pytestmark = pytest.mark.usefixtures("no_variables")

POSITIVE = "timeout must be a positive number of seconds, or None for no limit, not"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, POSITIVE),
        ({"timeout": -1.5}, POSITIVE),
        ({"timeout": math.nan}, POSITIVE),
        ({"timeout": "5"}, POSITIVE),
        ({"timeout": (5, 60)}, POSITIVE),
        ({"timeout": httpx.Timeout(5, read=0)}, POSITIVE),
        ({"retries": -1}, "retries must not be negative: -1"),
        ({"retries": 2.5}, "retries must be a whole number, not 2.5"),
        ({"retries": "3"}, "retries must be a whole number, not '3'"),
        ({"retry_seconds": -1}, "retry_seconds must be a non-negative number of seconds, not -1"),
        ({"retry_seconds": math.nan}, "retry_seconds must be a non-negative number"),
        ({"retry_seconds": None}, "retry_seconds must be a non-negative number"),
        ({"url": None}, "the server's address must be a string, not NoneType"),
        ({"url": httpx.URL("http://a")}, "the server's address must be a string, not URL"),
        ({"api_key": b"key"}, "the API key must be a string, not bytes"),
        ({"headers": {"X-A": 1}}, "the header 'X-A' and its value must be strings, not int"),
        ({"headers": {"X-A": None}}, "the header 'X-A' and its value must be strings, not NoneType"),
        ({"headers": {"X-A": b"secret"}}, "the header 'X-A' and its value must be strings, not bytes"),
        ({"headers": {"Content-type": "application/json"}}, "'Content-type' belongs to each request's body"),
        ({"headers": {1: "a"}}, "the header 1 and its value must be strings"),
        ({"headers": "X-A: b"}, "headers must be a mapping of names to values, not str"),
        ({"verify": False}, "verify must be a PEM file or an ssl.SSLContext, not False"),
        ({"verify": True}, "verify must be a PEM file or an ssl.SSLContext, not True"),
        ({"verify": ""}, "cannot load PEM certificates from"),
        ({"certificate": ["a.pem", "a.key"]}, "certificate must be a PEM file, or a tuple"),
        ({"certificate": "a\0b"}, "cannot load a PEM certificate and its key from a\0b: embedded null"),
        ({"verify": ssl.create_default_context(), "certificate": "a.pem"}, "with load_cert_chain"),
        ({"certificate": ()}, "certificate must be a PEM file, or a tuple"),
        ({"certificate": ("a.pem", "a.key", "password")}, "certificate must be a PEM file, or a tuple"),
    ],
)
def test_refuses_settings_that_cannot_be_used(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        kind(**{"url": "https://127.0.0.1:1"} | settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@127.0.0.1:1",
        "http://user:s@cret/@127.0.0.1:1?x",
        "http://a:secret@b:99999",
        "user:secret@127.0.0.1:1",
        "user:secret//cret@127.0.0.1:1",
        "http:/user:secret@127.0.0.1:1",
    ],
)
def test_no_message_shows_the_password_of_an_address(url: str) -> None:
    def elsewhere(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"].startswith("Basic ")
        return httpx.Response(302)

    for transport in (None, httpx.MockTransport(elsewhere)):
        with pytest.raises(CoserveError) as caught, Client(url, transport=transport) as client:
            client.models()
        assert not re.search("secret|cret|s@", str(caught.value))
        assert re.search(r"127\.0\.0\.1:1|@b:99999", str(caught.value))


def timeouts(timeout: Any) -> dict[str, Any]:
    made = connect("http://127.0.0.1", None, None, None, timeout, None, use_proxy=False)
    return made.requests["timeout"].as_dict()  # type: ignore[no-any-return]


def test_accepts_timeouts_of_any_length() -> None:
    none = {"connect": None, "read": None, "write": None, "pool": None}
    assert timeouts(None) == timeouts(httpx.Timeout(None)) == none
    assert timeouts(httpx.Timeout(7, read=None)) == {"connect": 7, "read": None, "write": 7, "pool": 7}
    read = timeouts(np.float32(0.5))["read"]
    assert (read, type(read)) == (0.5, float)


@pytest.mark.parametrize("timeout", [math.inf, 1e10, 2**32 / 1000 + 0.1, 10**400])
def test_a_very_long_timeout_is_long(timeout: float) -> None:
    """Sockets raise OverflowError, or wait for an instant if the milliseconds overflow 32 bits."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        async def run() -> None:
            async with AsyncClient(url, timeout=timeout) as client:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.models(), 0.3)

        asyncio.run(run())
    waited = timeouts(timeout)["read"]
    assert 2_000_000 < waited < 2**31 / 1000


def test_a_file_of_authorities_may_be_a_path_or_a_string(tmp_path: Path) -> None:
    for verify in (tmp_path / "none.pem", str(tmp_path / "none.pem")):
        with pytest.raises(InputError, match=r"cannot load PEM certificates from .*none\.pem"):
            Client("https://127.0.0.1:1", verify=verify)
