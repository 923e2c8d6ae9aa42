"""Errors of the server and of the connection, as the client raises them."""

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import coserve_client
from coserve_client import (
    CoserveError,
    DeadlineError,
    ForbiddenError,
    InternalError,
    InvalidParametersError,
    ProblemError,
    ProtocolError,
    RejectedError,
    RequestTimeoutError,
    UnauthenticatedError,
    UnknownModelError,
    UnreachableError,
    UploadTimeoutError,
)
from coserve_client.errors import Route, translated_errors
from coserve_client.reuse import Attempt

Ask = Callable[..., Any]
Make = Callable[..., dict[str, Any]]


PROBLEM = "application/problem+json"


def problem(status: int, /, **members: object) -> httpx.Response:
    return httpx.Response(status, json=members, headers={"Content-Type": PROBLEM})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RejectedError),
        (404, UnknownModelError),
        (413, RejectedError),
        (415, RejectedError),
        (401, UnauthenticatedError),
        (403, ForbiddenError),
        (408, UploadTimeoutError),
        (418, ProblemError),
        (422, InvalidParametersError),
        (500, InternalError),
        (504, DeadlineError),
    ],
)
def test_raises_problems_by_status_without_retrying(ask: Ask, status: int, kind: type[ProblemError]) -> None:
    calls = 0

    def server(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return problem(status, type="/problems/x", title="X", status=status, detail="why", filename="a.jpg")

    with pytest.raises(ProblemError) as caught:
        ask(server, "classify", b"x")
    error = caught.value
    assert type(error) is kind
    assert (error.type, error.title, error.status, error.detail) == ("/problems/x", "X", status, "why")
    assert error.extra == {"filename": "a.jpg"}
    assert str(error) == f"why (HTTP {status})"
    assert calls == 1


def test_every_documented_problem_has_its_error(ask: Ask) -> None:
    page = Path(__file__).parents[2] / "docs/reference/http-api.md"
    documented = re.findall(r"^\| `(/problems/([a-z-]+))` \| (\d{3}) \|", page.read_text(), re.M)
    assert len(documented) > 15
    general = {"not-found", "method-not-allowed", "bad-request", "head-timeout", "head-too-large"}
    for kind, slug, status in documented:
        with pytest.raises(ProblemError) as caught:
            ask(lambda _, k=kind, s=int(status): problem(s, type=k), "models", options={"retries": 0})
        name = "".join(word.capitalize() for word in slug.split("-")) + "Error"
        if slug in ("not-found", "bad-request"):
            assert type(caught.value) is ProblemError
        elif slug not in general:
            assert type(caught.value) is getattr(coserve_client, name)


def test_reads_the_errors_of_the_open_inference_protocol(ask: Ask) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error": "no model 'E'"})

    with pytest.raises(UnknownModelError, match="no model 'E'"):
        ask(server, "metadata", "E")


def test_understands_a_proxy_without_problem_documents(ask: Ask) -> None:
    def nginx(request: httpx.Request) -> httpx.Response:
        return httpx.Response(413, html="<h1>413 Request Entity Too Large</h1>")

    with pytest.raises(RejectedError, match=r"/v1/classify.* answered Request Entity Too Large") as caught:
        ask(nginx, "classify", b"x")
    assert (caught.value.type, caught.value.detail) == ("about:blank", None)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, UnauthenticatedError), (403, ForbiddenError), (429, ProblemError)]
)
def test_a_proxy_may_refuse_a_request_by_itself(ask: Ask, status: int, kind: type[ProblemError]) -> None:
    def gateway(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, html="<h1>Refused</h1>")

    for method in ("models", "live") if status < 404 else ("models",):
        with pytest.raises(kind, match=rf"answered .* \(HTTP {status}\)$") as caught:
            ask(gateway, method)
        assert (type(caught.value), caught.value.status) == (kind, status)


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, {"Content-Type": "text/html"}, b"<p>hello", "answered 200 with text/html"),
        (200, {}, b"", "answered 200 with no content type"),
        (200, {}, b"[]", "reply in the server's response is list"),
        (200, {}, b'{"model": "E"', "answered 200"),
        (200, {}, b"{}", r"lacks reply\.model"),
        (200, {}, b"\xff\xfe", "answered 200"),
        (200, {}, b"[" * 100_000, "answered 200"),
        (404, {"Content-Type": "application/json"}, b"[" * 100_000, "answered 404 with application/json"),
        (400, {"Content-Type": PROBLEM}, b"[" * 100_000, "answered 400"),
        (404, {"Content-Type": "application/json"}, b"{}", "answered 404 with application/json"),
        (400, {"Content-Type": PROBLEM}, b"[", r"/classify answered 400 with application/problem\+json"),
        (400, {"Content-Type": PROBLEM}, b"[]", "problem in the server's response is list"),
        (301, {"Location": "https://elsewhere/"}, b"", "a redirect to https://elsewhere/"),
    ],
)
def test_reports_responses_of_other_servers(
    ask: Ask, status: int, headers: dict[str, str], body: bytes, message: str
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers, content=body)

    with pytest.raises(ProtocolError, match=message):
        ask(server, "classify", b"x")


def test_a_proxy_need_not_give_a_reason(ask: Ask) -> None:
    def envoy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(504, extensions={"reason_phrase": b""})

    with pytest.raises(DeadlineError, match="answered Gateway Timeout"):
        ask(envoy, "models")


def test_a_problem_without_words_is_its_status(ask: Ask) -> None:
    with pytest.raises(RejectedError, match=r"^status 400 \(HTTP 400\)$") as caught:
        ask(lambda _: problem(400, type=None, title=None, detail=None), "models")
    assert caught.value.type == "about:blank"


def test_requires_one_result_per_image(ask: Ask, reply: Make) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=reply("a"))

    with pytest.raises(ProtocolError, match="1 results for 2 images"):
        ask(server, "classify", [b"x", b"y"])


@pytest.mark.parametrize(
    ("cause", "expected", "message"),
    [
        (httpx.ConnectError("refused"), UnreachableError, "http://127.0.0.1:8000 .*coserve serve"),
        (httpx.ConnectTimeout(""), UnreachableError, "timed out"),
        (httpx.ReadTimeout(""), RequestTimeoutError, "did not answer in time .ReadTimeout"),
        (httpx.WriteTimeout(""), RequestTimeoutError, "did not read the request in time .WriteTimeout"),
        (httpx.PoolTimeout(""), RequestTimeoutError, "no connection to .* became free in time"),
        (
            httpx.RemoteProtocolError("Server disconnected"),
            UnreachableError,
            "Server disconnected.; the request may be too large, or .* HTTPS",
        ),
        (
            httpx.ReadError(""),
            UnreachableError,
            "broke .ReadError.; the request may be .* HTTPS",
        ),
        (httpx.DecodingError("bad gzip"), ProtocolError, "bad gzip"),
    ],
)
def test_translates_transport_errors_once(
    ask: Ask, cause: Exception, expected: type[CoserveError], message: str
) -> None:
    calls = 0

    def server(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        raise cause

    with pytest.raises(expected, match=message) as caught:
        ask(server, "classify", b"x")
    assert caught.value.__cause__ is cause
    assert calls == 1


@pytest.mark.parametrize(
    ("url", "cause", "message"),
    [
        (
            "https://a.b:8000/x",
            httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"),
            r"https://a.b:8000/x does not speak HTTPS .*; if it is a server without TLS, use http://a.b:8000/x$",
        ),
        ("https://a.b", httpx.ConnectError("[SSL] record layer failure (_ssl.c:1000)"), "use http://a.b$"),
        (
            "http://a.b",
            httpx.RemoteProtocolError("illegal"),
            r"illegal\); the server may only speak HTTPS$",
        ),
        ("https://a.b", httpx.ReadError(""), r"\(ReadError\); the server may require a client certificate$"),
    ],
)
def test_names_the_other_scheme(url: str, cause: httpx.RequestError, message: str) -> None:
    cause.request = httpx.Request("GET", url)
    with pytest.raises(UnreachableError, match=message), translated_errors(Route(url), Attempt()):
        raise cause


def test_translates_whatever_a_proxy_causes() -> None:
    cause = ValueError("Malformed reply")
    with (
        pytest.raises(UnreachableError, match="through the proxy in ALL_PROXY failed: Malformed reply"),
        translated_errors(Route("http://server.example", proxy="ALL_PROXY"), Attempt()),
    ):
        raise cause
    with (
        pytest.raises(ValueError, match="Malformed"),
        translated_errors(Route("http://server.example"), Attempt()),
    ):
        raise cause


def test_errors_come_back_from_another_process(ask: Ask) -> None:
    with pytest.raises(RejectedError) as caught:
        ask(lambda _: problem(413, type="/problems/too-many-images", detail="why", limit=8), "models")
    error = caught.value
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is type(error)
        assert (str(copied), copied.status, copied.detail) == ("why (HTTP 413)", 413, "why")
        assert (copied.type, copied.title, copied.extra) == (error.type, error.title, {"limit": 8})


def test_exports_the_whole_error_tree() -> None:
    errors = {name for name, kind in vars(coserve_client).items() if name.endswith("Error")}
    assert errors == {name for name in vars(coserve_client.errors) if name.endswith("Error")}
    assert errors <= set(coserve_client.__all__)
