import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import coserve_client
from coserve_client import (
    AsyncClient,
    Client,
    CoserveError,
    DeadlineError,
    ForbiddenError,
    InputError,
    InternalError,
    InvalidParametersError,
    ProblemError,
    ProtocolError,
    RejectedError,
    RequestTimeoutError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
    UnreachableError,
    UploadTimeoutError,
)

Ask = Callable[..., Any]
Make = Callable[..., dict[str, Any]]


def problem(status: int, /, **members: object) -> httpx.Response:
    return httpx.Response(status, json=members, headers={"Content-Type": "application/problem+json"})


def test_sends_the_parameters(ask: Ask, reply: Make) -> None:
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=reply("image_0"))

    options = {"headers": {"Authorization": "Bearer x"}, "url": "http://host/prefix/"}
    answer = ask(server, "classify", b"x", model="E", top_k=2, member_predictions=True, options=options)

    assert answer.results[0].filename == "image_0"
    assert (seen[0].method, seen[0].url.path) == ("POST", "/prefix/v1/classify")
    assert dict(seen[0].url.params) == {"model": "E", "top_k": "2", "member_predictions": "true"}
    assert seen[0].headers["Authorization"] == "Bearer x"


def test_leaves_out_the_model_by_default(ask: Ask, reply: Make) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert dict(request.url.params) == {"top_k": "5", "member_predictions": "false"}
        return httpx.Response(200, json=reply("image_0"))

    ask(server, "classify", b"x")


def test_retries_503_and_sends_the_same_body(ask: Ask, reply: Make) -> None:
    bodies: list[bytes] = []

    def server(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        if len(bodies) < 3:
            return httpx.Response(503, headers={"Retry-After": "0"})
        return httpx.Response(200, json=reply("image_0"))

    ask(server, "classify", b"x")
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


def test_gives_up_after_its_retries(ask: Ask) -> None:
    calls = 0

    def server(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        response = problem(503, title="Overloaded", detail="the queue is full")
        response.headers["Retry-After"] = "0"
        return response

    with pytest.raises(UnavailableError, match="the queue is full"):
        ask(server, "classify", b"x", options={"retries": 2})
    assert calls == 3


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
    assert str(error) == f"why (the server answered {status})"
    assert calls == 1


def test_every_problem_that_the_server_documents_has_its_error(ask: Ask) -> None:
    page = Path(__file__).parents[2] / "docs" / "http-api.md"
    documented = re.findall(r"^\| `(/problems/([a-z-]+))` \| (\d{3}) \|", page.read_text(), re.M)
    assert len(documented) > 15
    general = {"not-found", "method-not-allowed", "bad-request", "head-timeout", "head-too-large"}
    for kind, slug, status in documented:
        with pytest.raises(ProblemError) as caught:
            ask(lambda _, k=kind, s=int(status): problem(s, type=k), "models", options={"retries": 0})
        name = "".join(word.capitalize() for word in slug.split("-")) + "Error"
        if slug not in general:
            assert type(caught.value) is getattr(coserve_client, name)


def test_reads_the_errors_of_the_open_inference_protocol(ask: Ask) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, json={"error": "no model 'E'"})

    with pytest.raises(UnknownModelError, match="no model 'E'"):
        ask(server, "metadata", "E")


def test_sends_the_key_and_the_deadline(ask: Ask, reply: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Headers] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200, json=reply("image_0"))

    ask(server, "classify", b"x", timeout_ms=250, options={"api_key": "given"})
    monkeypatch.setenv("COSERVE_API_KEY", "environment")
    ask(server, "classify", b"x")
    ask(server, "classify", b"x", options={"api_key": "given"})
    ask(server, "classify", b"x", options={"api_key": ""})
    assert [headers.get("X-API-Key") for headers in seen] == ["given", "environment", "given", None]
    assert [headers.get("Request-Timeout-Ms") for headers in seen] == ["250", None, None, None]


@pytest.mark.parametrize("key", ["a\r\nb", "ü"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="API key"):
        Client(api_key=key)


def test_wants_certificates_in_pem(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for _ in range(2):
        with pytest.raises(InputError, match=r"ca\.pem holds no certificates"):
            Client("https://localhost", verify=file)
        file.write_text("no certificate")


def test_asks_for_a_version(ask: Ask) -> None:
    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return httpx.Response(404, json={"error": "none"})

    for method in ("model", "metadata"):
        with pytest.raises((UnknownModelError, ProtocolError)):
            ask(server, method, "a/b", version="2")
    assert ask(server, "ready", "E") is False
    assert ask(server, "ready", "E", version="2") is False
    with pytest.raises(UnknownModelError):
        ask(server, "classify", b"x", version="2")
    assert asked == [
        "/v1/models/a%2Fb?version=2",
        "/v2/models/a%2Fb/versions/2",
        "/v2/models/E/ready",
        "/v2/models/E/versions/2/ready",
        "/v1/classify?top_k=5&member_predictions=false&version=2",
    ]


def test_understands_a_proxy_that_sends_no_problem_document(ask: Ask) -> None:
    def nginx(request: httpx.Request) -> httpx.Response:
        return httpx.Response(413, html="<h1>413 Request Entity Too Large</h1>")

    with pytest.raises(RejectedError, match=r"/v1/classify.* answered Request Entity Too Large") as caught:
        ask(nginx, "classify", b"x")
    assert (caught.value.type, caught.value.detail) == ("about:blank", None)


PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, {"Content-Type": "text/html"}, b"<p>hello", "answered 200 with text/html"),
        (200, {}, b"", "answered 200 with no content type"),
        (200, {}, b"[]", "reply in the server's answer is list"),
        (200, {}, b'{"model": "E"', "answered 200"),
        (200, {}, b"{}", r"lacks reply\.model"),
        (200, {}, b"\xff\xfe", "answered 200"),
        (404, {"Content-Type": "application/json"}, b"{}", "answered 404 with application/json"),
        (400, {"Content-Type": PROBLEM}, b"[", r"/classify answered 400 with application/problem\+json"),
        (400, {"Content-Type": PROBLEM}, b"[]", "problem in the server's answer is list"),
        (301, {"Location": "https://elsewhere/"}, b"", "a redirect to https://elsewhere/"),
    ],
)
def test_says_what_is_no_coserve_answer(
    ask: Ask, status: int, headers: dict[str, str], body: bytes, message: str
) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers, content=body)

    with pytest.raises(ProtocolError, match=message):
        ask(server, "classify", b"x")


MODEL = {
    "name": "a/b",
    "version": "1",
    "ready": True,
    "quorum": 2,
    "members": ["m0", "m1"],
    "weights": [1, 2.5],
    "max_batch_size": 8,
    "labels": ["cat", "dog"],
    "preprocessing": {"height": 32},
    "provenance": {"split": 2},
}


def test_describes_models(ask: Ask) -> None:
    paths: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path.decode())
        return httpx.Response(200, json=MODEL if "b" in paths[-1] else {"default": None, "models": [MODEL]})

    model = ask(server, "model", "a/b")
    assert (model.name, model.members, model.weights) == ("a/b", ("m0", "m1"), (1.0, 2.5))
    assert model.provenance == {"split": 2}
    assert ask(server, "models") == (model,)
    assert paths == ["/v1/models/a%2Fb", "/v1/models"]


def test_wants_one_result_per_image(ask: Ask, reply: Make) -> None:
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
        (httpx.PoolTimeout(""), RequestTimeoutError, "PoolTimeout"),
        (httpx.RemoteProtocolError("Server disconnected"), UnreachableError, "failed: Server disconnected"),
        (httpx.ReadError(""), UnreachableError, "broke off the connection .ReadError"),
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


def test_tells_liveness_and_readiness_without_retrying(ask: Ask) -> None:
    paths: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200 if request.url.path == "/healthz" else 503)

    assert ask(server, "live") is True
    assert ask(server, "ready") is False
    assert paths == ["/healthz", "/readyz"]


@pytest.mark.parametrize("url", ["localhost:8000", "127.0.0.1:8000", "ftp://host", "http://", "http://[::1"])
def test_wants_an_http_address(url: str) -> None:
    with pytest.raises(InputError, match="is not an address"):
        Client(url)
    with pytest.raises(InputError, match="is not an address"):
        AsyncClient(url)


def test_both_clients_have_one_surface() -> None:
    def surface(kind: type) -> set[str]:
        return {name.removeprefix("a") for name in vars(kind) if not name.startswith("_")}

    assert surface(Client) == surface(AsyncClient)


def test_publishes_its_whole_error_tree() -> None:
    errors = {name for name, kind in vars(coserve_client).items() if name.endswith("Error")}
    assert errors == {name for name in vars(coserve_client.errors) if name.endswith("Error")}
    assert errors <= set(coserve_client.__all__)
