"""Options of a classification that cannot be sent are refused before anything is."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import httpx
import pytest

from coserve_client import InputError, ProtocolError

Ask = Callable[..., Any]


def unused(request: httpx.Request) -> httpx.Response:
    raise AssertionError(request.url)


@pytest.mark.parametrize("timeout", ["250", [250], 10**400])
def test_the_timeout_of_a_call_is_a_number(ask: Ask, timeout: Any) -> None:
    for method, arguments in (("classify", (b"x",)), ("infer", ("E", [0.5]))):
        with pytest.raises(InputError, match="timeout_ms must be a number of milliseconds, not"):
            ask(unused, method, *arguments, timeout_ms=timeout)


@pytest.mark.parametrize("name", ["top_k", "coverage", "set_method", "early_stop", "member_predictions"])
def test_an_option_has_one_value(ask: Ask, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} must be one value, not \[0\.9, 0\.95\]"):
        ask(unused, "classify", b"x", **{name: [0.9, 0.95]})


@pytest.mark.parametrize("name", ["set_method", "early_stop"])
def test_an_option_can_be_encoded(ask: Ask, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} has characters that cannot be sent"):
        ask(unused, "classify", b"x", **{name: "\udcff"})


@pytest.mark.parametrize(("timeout", "sent"), [(1234567, "1234567"), (100000.5, "100000.5"), (0.1, "0.1")])
def test_the_timeout_of_a_call_is_sent_as_it_is(
    ask: Ask, reply: Callable[..., dict[str, Any]], timeout: float, sent: str
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert request.headers["Request-Timeout-Ms"] == sent
        return httpx.Response(200, json=reply("image_0"))

    ask(server, "classify", b"x", timeout_ms=timeout)


class Early(str, Enum):
    ALWAYS = "always"


class Name(str, Enum):
    FIRST = "E"


class Version(str, Enum):
    SECOND = "2"


def test_sends_the_value_of_an_enumeration(ask: Ask, reply: Callable[..., dict[str, Any]]) -> None:
    targets = []

    def server(request: httpx.Request) -> httpx.Response:
        targets.append(request.url.raw_path.decode())
        return httpx.Response(200, json=reply("image_0"))

    assert ask(server, "classify", b"x", early_stop=Early.ALWAYS, model=Name.FIRST).results
    for method in ("model", "metadata"):
        with pytest.raises(ProtocolError):
            ask(server, method, Name.FIRST, version=Version.SECOND)
    assert targets == [
        "/v1/classify?top_k=5&member_predictions=false&model=E&early_stop=always",
        "/v1/models/E?version=2",
        "/v2/models/E/versions/2",
    ]
