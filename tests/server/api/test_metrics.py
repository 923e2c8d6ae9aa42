"""`/metrics` after known requests."""

import asyncio
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from coserve_server.observability.metrics import Histogram
from coserve_server.observability.record import Record
from tests.server.api.application import Server
from tests.server.fake_engine import BuggyEngine, FakeEngine, ensemble, png, run

CLASSIFY: dict[str, Any] = {"content": png(), "headers": {"Content-Type": "image/png"}}
MODEL = {"model": "pair"}


def scrape(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = server.ask("GET", "/metrics")
    assert response.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(response.text)
        for sample in family.samples
    }


class Scrape:
    """The metrics of one scrape, by name and labels."""

    def __init__(self, server: Server) -> None:
        self.values = scrape(server)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.values.get((f"coserve_{name}", frozenset(labels.items())))

    def labels(self, name: str) -> set[frozenset[tuple[str, str]]]:
        return {labels for known, labels in self.values if known == f"coserve_{name}"}


def test_an_answer_is_counted_and_measured() -> None:
    server = Server(FakeEngine(ensemble(), scripts=[[run(0, 20, [1, 3]), run(0, 10, [3, 1])]]))
    assert server.ask("POST", "/v1/classify", **CLASSIFY).status_code == 200
    said = Scrape(server)
    assert said("requests_total", **MODEL, route="/v1/classify", status="200") == 1
    assert said("request_duration_seconds_count", **MODEL) == 1
    assert said("queue_duration_seconds_count", **MODEL) == 1
    assert said("images_total", **MODEL) == 1
    assert said("batch_size_images_sum", **MODEL) == 1
    assert said("member_overlap_ratio_sum", **MODEL) == 1.5
    assert said("member_overlap_ratio_bucket", **MODEL, le="1.5") == 1
    assert said("member_overlap_ratio_bucket", **MODEL, le="1.25") == 0
    for member, seconds in ("m0", 0.02), ("m1", 0.01):
        assert said("member_duration_seconds_sum", **MODEL, member=member) == pytest.approx(seconds)
    assert said("member_duration_seconds_bucket", **MODEL, member="m1", le="0.01") == 1
    assert said("member_duration_seconds_bucket", **MODEL, member="m0", le="0.01") == 0
    assert said("degraded_answers_total", **MODEL) == 0
    assert said("requests_in_flight") == 0
    assert not said.labels("requests_refused_total")


def test_members_that_are_missing_are_counted_by_kind() -> None:
    scripts = [
        [run(0, 1, [1, 3]), run(0, 1, error="broke"), run(0, 1, [3, 9])],
        [run(0, 1, [1, 3]), None, run(0, 1, [float("nan"), 9])],
    ]
    server = Server(FakeEngine(ensemble(members=3), scripts=scripts), min_members=2, deadline_ms=500)
    assert server.ask("POST", "/v1/classify", **CLASSIFY).json()["degraded"] is True
    assert server.ask("POST", "/v1/classify", **CLASSIFY).status_code == 504
    said = Scrape(server)
    assert said("degraded_answers_total", **MODEL) == 1
    assert said.labels("member_errors_total") == {
        frozenset({("model", "pair"), ("member", member), ("kind", kind)})
        for member, kind in (("m1", "failed"), ("m1", "late"), ("m2", "failed"))
    }
    assert said("requests_refused_total", route="/v1/classify", reason="deadline") == 1
    assert said("request_duration_seconds_count", **MODEL) == 2
    assert said("queue_duration_seconds_count", **MODEL) == 1


def test_what_is_ready() -> None:
    engine = FakeEngine(ensemble(members=3))
    server = Server(engine, min_members=2)
    version = {"model": "pair", "version": "1"}
    said = Scrape(server)
    gauges = ("info", "ready", "quorum", "members", "members_ready")
    assert [said(f"model_{name}", **version) for name in gauges] == [1, 1, 2, 3, 3]
    engine.ready = False
    said = Scrape(server)
    assert said("model_ready", **version) == said("model_members_ready", **version) == 0
    assert server.ask("GET", "/readyz").status_code == 503
    said = Scrape(server)
    assert said("requests_refused_total", route="/readyz", reason="no-quorum") == 1
    assert said("request_duration_seconds_count", **MODEL) is None


def test_overload_and_requests_in_flight() -> None:
    engine = FakeEngine(ensemble())
    server = Server(engine, max_requests=1)
    with server.core.admitted(Record()):
        assert server.ask("POST", "/v1/classify", **CLASSIFY).status_code == 503
        said = Scrape(server)
    assert said("requests_in_flight") == said("requests_limit") == 1
    assert said("requests_refused_total", route="/v1/classify", reason="overloaded") == 1


def test_clients_cannot_make_labels() -> None:
    server = Server(FakeEngine(ensemble()))
    for path in ("/v1/models/cow", "/v2/models/cow", "/cow", "/v1/classify?model=cow", "/v1/cow%0A"):
        server.ask("GET", path)
        server.ask("POST", path, **CLASSIFY)
    assert not any("cow" in value for _, labels in scrape(server) for _, value in labels)


def test_two_servers_do_not_share_their_counters() -> None:
    one, other = (Server(FakeEngine(ensemble())) for _ in range(2))
    one.ask("GET", "/healthz")
    labels = {"model": "", "route": "/healthz", "status": "200"}
    assert Scrape(one)("requests_total", **labels) == 1
    assert Scrape(other)("requests_total", **labels) is None


def test_openmetrics_on_request() -> None:
    server = Server(FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3]), run(0, 1, [3, 1])]]))
    server.ask("POST", "/v1/classify", **CLASSIFY)
    accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
    response = server.ask("GET", "/metrics", headers=accept)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family.type for family in parse_openmetrics(response.text)}
    assert families["coserve_requests"] == "counter"
    assert families["coserve_request_duration_seconds"] == "histogram"
    assert "process_cpu_seconds" in families


def test_a_value_on_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 7.5


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/v2", "/v2"),
        ("GET", "/v2/health/ready", "/v2/health/ready"),
        ("GET", "/v2/models/stats", "/v2/models/stats"),
        ("GET", "/v2/models/pair", "/v2/models/{name}"),
        ("GET", "/v2/models/pair/versions/1/config", "/v2/models/{name}/versions/{version}/config"),
        ("GET", "/v2/models/pair/stats", "/v2/models/{name}/stats"),
        ("POST", "/v2/models/pair/infer", "/v2/models/{name}/infer"),
        ("POST", "/v2/repository/index", "/v2/repository/index"),
        ("POST", "/v2/repository/models/pair/load", "/v2/repository/models/{name}/load"),
        ("GET", "/v1/models/pair", "/v1/models/{name}"),
        ("GET", "/healthz", "/healthz"),
    ],
)
def test_routes_are_named_by_their_whole_pattern(method: str, path: str, route: str) -> None:
    server = Server(FakeEngine(ensemble()))
    server.ask(method, path)
    (labels,) = Scrape(server).labels("requests_total")
    assert dict(labels)["route"] == route


def test_bugs_are_counted() -> None:
    server = Server(BuggyEngine(ensemble()))
    assert server.ask("POST", "/v1/classify", **CLASSIFY).status_code == 500
    said = Scrape(server)
    assert said("requests_refused_total", route="/v1/classify", reason="internal") == 1
    assert server.core.statistics.get(ensemble()).fail.count == 1


def test_a_disconnected_client_is_not_counted_as_answered() -> None:
    """The request is counted with nginx's status 499, and none of its members as late."""
    server = Server(FakeEngine(ensemble(), scripts=[[None, None]]))
    incoming = [{"type": "http.request", "body": png()}, {"type": "http.disconnect"}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "query_string": b"",
        "headers": [(b"content-type", b"image/png")],
    }

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        pass

    asyncio.run(server.app(scope, receive, send))
    said = Scrape(server)
    assert said("requests_total", **MODEL, route="/v1/classify", status="499") == 1
    assert not said.labels("member_errors_total")
