from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from coserve_client import (
    AsyncClient,
    Client,
    ForbiddenError,
    InputError,
    PredictionSets,
    ProblemError,
    ProtocolError,
    RequestTimeoutError,
    UnauthenticatedError,
    UnavailableError,
    UnknownModelError,
)

Ask = Callable[..., Any]
Make = Callable[..., dict[str, Any]]


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


def test_asks_for_prediction_sets(ask: Ask, reply: Make) -> None:
    document = reply("image_0")
    document["prediction_sets"] = {"coverage": 0.95, "method": "raps", "threshold": 0.98}
    document["results"][0]["prediction_set"] = document["results"][0]["predictions"]

    def server(request: httpx.Request) -> httpx.Response:
        assert (request.url.params["coverage"], request.url.params["set_method"]) == ("0.95", "raps")
        return httpx.Response(200, json=document)

    answer = ask(server, "classify", b"x", coverage=0.95, set_method="raps")
    assert answer.prediction_sets == PredictionSets(0.95, "raps", 0.98)
    assert answer.results[0].prediction_set == answer.results[0].predictions


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
        overloaded = {"title": "Overloaded", "detail": "the queue is full"}
        response = httpx.Response(503, json=overloaded, headers={"Content-Type": "application/problem+json"})
        response.headers["Retry-After"] = "0"
        return response

    with pytest.raises(UnavailableError, match="the queue is full"):
        ask(server, "classify", b"x", options={"retries": 2})
    assert calls == 3


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


def test_a_header_replaces_the_key_whatever_its_case(ask: Ask) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        assert request.headers.get_list("X-API-Key") == ["b"]
        return httpx.Response(200)

    assert ask(server, "live", options={"api_key": "a", "headers": {"x-api-key": "b"}})


@pytest.mark.parametrize("key", ["a\r\nb", "ü", "a\tb", "a\x7fb", "\udcff"])
def test_rejects_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(InputError, match="API key"):
        Client(api_key=key)


def test_rejects_a_header_that_cannot_be_sent() -> None:
    with pytest.raises(InputError, match="headers must be ASCII"):
        Client(headers={"Authorization": "ü"})


def test_certificates_must_be_pem(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for _ in range(2):
        with pytest.raises(InputError, match=r"cannot load PEM certificates from .*ca\.pem"):
            Client("https://localhost", verify=file)
        file.write_text("no certificate")


def test_requests_a_version(ask: Ask) -> None:
    targets: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        targets.append(request.url.raw_path.decode())
        return httpx.Response(404, json={"error": "none"})

    for method in ("model", "metadata"):
        with pytest.raises((UnknownModelError, ProtocolError)):
            ask(server, method, "a?b", version="2")
    assert ask(server, "ready", "E") is False
    assert ask(server, "ready", "E", version="2") is False
    with pytest.raises(UnknownModelError):
        ask(server, "classify", b"x", version="2")
    assert targets == [
        "/v1/models/a%3Fb?version=2",
        "/v2/models/a%3Fb/versions/2",
        "/v2/models/E/ready",
        "/v2/models/E/versions/2/ready",
        "/v1/classify?top_k=5&member_predictions=false&version=2",
    ]


MODEL = {
    "name": "a #b",
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

    model = ask(server, "model", "a #b")
    assert (model.name, model.members, model.weights) == ("a #b", ("m0", "m1"), (1.0, 2.5))
    assert model.provenance == {"split": 2}
    assert ask(server, "models") == (model,)
    assert paths == ["/v1/models/a%20%23b", "/v1/models"]


@pytest.mark.parametrize(
    ("default", "names", "expected"),
    [("b", ["a", "b"], "b"), (None, ["a"], "a"), (None, ["a", "b"], None), ("c", ["a"], None)],
)
def test_describes_the_ensemble_that_answers_by_default(
    ask: Ask, default: str | None, names: list[str], expected: str | None
) -> None:
    models = [MODEL | {"name": name} for name in names]
    answer = httpx.Response(200, json={"default": default, "models": models})
    model = ask(lambda request: answer, "default_model")
    assert (model.name if model else None) == expected


def test_reports_liveness_and_readiness_without_retrying(ask: Ask) -> None:
    paths: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(200 if request.url.path == "/healthz" else 503)

    assert ask(server, "live") is True
    assert ask(server, "ready") is False
    assert paths == ["/healthz", "/readyz"]


@pytest.mark.parametrize("probe", ["live", "ready"])
def test_a_probe_that_reaches_no_server_is_false_unless_it_was_not_sent(ask: Ask, probe: str) -> None:
    for cause in httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.ReadTimeout(""):
        assert ask(Mock(side_effect=cause), probe) is False
    with pytest.raises(RequestTimeoutError, match=r"no connection to .* became free in time"):
        ask(Mock(side_effect=httpx.PoolTimeout("")), probe)


@pytest.mark.parametrize(("status", "error"), [(401, UnauthenticatedError), (403, ForbiddenError)])
def test_a_rejected_key_is_not_reported_as_a_model_that_is_not_ready(
    ask: Ask, status: int, error: type[ProblemError]
) -> None:
    with pytest.raises(error, match="no key"):
        ask(lambda _: httpx.Response(status, json={"error": "no key"}), "ready", "E")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://[::1",
        "http://127.0.0.1:80000",
        "http://a..b:8000",
        "http://xn--zz",
        "http://host/?token=x",
        "http://host/?",
        "http://host/#models",
    ],
)
def test_the_url_must_be_http(url: str) -> None:
    with pytest.raises(InputError, match="is not a valid URL"):
        Client(url)
    with pytest.raises(InputError, match="is not a valid URL"):
        AsyncClient(url)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name.removeprefix("a") for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def unused(request: httpx.Request) -> httpx.Response:
    raise AssertionError(request.url)


def test_refuses_a_header_of_two_lines(ask: Ask) -> None:
    with pytest.raises(InputError, match=r"header .X-A. has characters that cannot be sent"):
        ask(unused, "models", options={"headers": {"X-A": "a\nb"}})
