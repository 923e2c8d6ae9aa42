"""Traces, as a collector receives them."""

import asyncio
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from coserve_server.api.app import build_app
from coserve_server.core import _tracer
from coserve_server.ensembles.calibration import Calibration
from coserve_server.errors import SettingsError
from coserve_server.observability.record import Record
from coserve_server.observability.tracing import Tracer
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.engines.engine_on_fake import TritonEngine, until
from tests.server.engines.fake_triton import FakeTriton
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble, png, run
from tests.server.onnx_repository import write_repository
from tests.server.otlp import Collector, attributes, collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
NAMED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
FILES = {"files": ("a.png", png())}


def trace(
    engine: Any, files: Any = FILES, headers: Any = None, **changes: Any
) -> tuple[Collector, httpx.Response]:
    """Trace one request; return what the collector received, and the response."""
    core = Classifier(engine, load_settings(repository="unused", **changes), cores=1)

    async def go(url: str) -> httpx.Response:
        tracer = Tracer(url)
        transport = httpx.ASGITransport(build_app(core, tracer=tracer), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            response = await http.post("/v1/classify", files=files, headers=headers)
        await tracer.close()
        await core.close()
        return response

    with collector() as received:
        response = asyncio.run(go(received.url))
    return received, response


def children(spans: Collector, parent: Span) -> list[str]:
    return sorted(span.name for span in spans.spans if span.parent_span_id == parent.span_id)


def test_a_request_and_what_was_done_for_it() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(5, 9, [1, 3]), run(6, 12, [3, 1])]])
    spans, response = trace(engine, headers={"X-Request-Id": "mine"})
    root = spans.one("POST /v1/classify")
    assert root.kind == Span.SPAN_KIND_SERVER
    assert not root.parent_span_id
    assert {span.trace_id for span in spans.spans} == {root.trace_id}
    assert children(spans, root) == ["combine", "decode", "inference", "preprocess", "queue"]
    assert children(spans, spans.one("inference")) == ["member m0", "member m1"]
    assert spans.resource["service.name"] == "coserve"
    said = attributes(root)
    assert said["http.response.status_code"] == response.status_code == 200
    assert said["coserve.request_id"] == "mine"
    assert said["coserve.model"] == "pair"
    assert said["coserve.degraded"] is False


def test_early_stopping_names_its_rule_and_counts_members() -> None:
    calibration = Calibration.model_validate({"early_stopping": [{"loss": 0.001, "confidence": 0.6}]})
    engine = ReadingEngine(replace(ensemble(), calibration=calibration))
    files = [("files", (f"{colour}.png", png(colour))) for colour in ("red", "black")]
    spans, response = trace(engine, files, early_stop="always", early_stop_loss=0.002)
    said = attributes(spans.one("POST"))
    assert (said["coserve.early_stop.confidence"], said["coserve.early_stop.loss"]) == (0.6, 0.001)
    numbers = [one.int_value for one in said["coserve.image_members"].values]
    assert numbers == [len(result["members"]) for result in response.json()["results"]] == [1, 2]

    spans, _ = trace(ReadingEngine(ensemble()), files, early_stop="always", early_stop_confidence=0.6)
    said = attributes(spans.one("POST"))
    assert said["coserve.early_stop.confidence"] == 0.6
    assert "coserve.early_stop.loss" not in said

    spans, _ = trace(engine, files)
    assert not {"coserve.early_stop.confidence", "coserve.image_members"} & set(attributes(spans.one("POST")))


def test_times_are_those_that_were_measured() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(5, 9, [1, 3]), run(6, 12, [3, 1])]])
    spans, response = trace(engine)
    timings = response.json()["timings_ms"]
    for name in "decode", "preprocess", "queue", "combine":
        span = spans.one(name)
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(timings[name])
    one = spans.one("member m0")
    two = spans.one("member m1")
    assert one.end_time_unix_nano - one.start_time_unix_nano == 4_000_000
    assert two.start_time_unix_nano - one.start_time_unix_nano == 1_000_000
    order = [
        spans.one(name).start_time_unix_nano for name in ("POST", "decode", "preprocess", "queue", "combine")
    ]
    assert order == sorted(order)


def test_every_image_has_spans_of_its_own() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, *[[1, 3]] * 2)] * 2, [run(2, 3, [1, 3])] * 2])
    spans, _ = trace(engine, [("files", (f"{index}.png", png())) for index in range(3)])
    assert [attributes(span)["coserve.image"] for span in spans.named("decode")] == [0, 1, 2]
    assert len(spans.named("preprocess")) == 3
    assert len(spans.named("inference")) == 2
    assert len(spans.named("member m1")) == 2


def test_the_trace_of_the_client_goes_on() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3]), run(0, 1, [3, 1])]])
    spans, response = trace(engine, headers=NAMED)
    root = spans.one("POST")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert response.headers["traceresponse"] == f"00-{TRACE}-{root.span_id.hex()}-01"


def test_what_the_client_does_not_sample_is_not_sent() -> None:
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3]), run(0, 1, [3, 1])]])
    spans, response = trace(engine, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert response.status_code == 200
    assert spans.spans == []


def test_missing_members_and_their_reasons() -> None:
    engine = FakeEngine(ensemble(members=3), scripts=[[run(0, 1, [1, 3]), run(0, 1, error="broke"), None]])
    spans, response = trace(engine, deadline_ms=300)
    assert response.status_code == 504
    assert spans.one("member m0").status.code == Status.STATUS_CODE_UNSET
    assert spans.one("member m1").status.message == "broke"
    assert spans.one("member m2").status.message == "no answer before the deadline"
    root = spans.one("POST")
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root)["error.type"] == "deadline"
    assert attributes(root)["coserve.problem"] == response.json()["instance"]
    assert not spans.named("combine")


def test_triton_is_told_the_trace(tmp_path: Path) -> None:
    repository = write_repository(tmp_path)

    async def go() -> set[str | None]:
        fake = FakeTriton(repository)
        settings = load_settings(engine="triton", triton_url=await fake.start(), triton_refresh_ms=20)
        engine = await TritonEngine.connect(settings)
        core = Classifier(engine, settings, cores=1)
        tracer = Tracer(received.url)
        try:
            await until(lambda: "pair" in engine.ensembles)
            transport = httpx.ASGITransport(build_app(core, tracer=tracer))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                response = await http.post("/v1/classify", files=FILES, headers=NAMED)
            assert response.status_code == 200, response.text
        finally:
            await core.close()
            await tracer.close()
            await fake.stop()
        return fake.traces

    with collector() as received:
        traces = asyncio.run(go())
    assert traces == {None, f"00-{TRACE}-{received.one('POST').span_id.hex()}-01"}


def test_a_collector_that_is_not_there_holds_nothing_up() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3]), run(0, 1, [3, 1])]])
        core = Classifier(engine, load_settings(repository="unused"), cores=1)

        async def go() -> int:
            tracer = Tracer(url)
            transport = httpx.ASGITransport(build_app(core, tracer=tracer))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                response = await http.post("/v1/classify", files=FILES)
            await asyncio.wait_for(tracer.close(), 60)
            return response.status_code

        assert asyncio.run(go()) == 200


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:1080/", "nonsense://x", ":::"])
def test_a_collector_on_this_machine_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    engine = FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3]), run(0, 1, [3, 1])]])
    received, response = trace(engine)
    assert response.status_code == 200
    assert received.spans


def test_variables_that_opentelemetry_refuses_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_settings(repository="unused", otlp_endpoint="http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match=r"otlp_endpoint: OpenTelemetry refuses its variables: max_queue"):
        _tracer(config)


def test_without_the_extra_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "coserve_server.observability.tracing")
    with pytest.raises(SettingsError, match=r"otlp_endpoint: .* pip install 'coserve\[otel\]'"):
        _tracer(load_settings(repository="unused", otlp_endpoint="http://127.0.0.1:4318"))


def test_without_traces_their_libraries_are_not_imported() -> None:
    script = (
        "import sys, coserve_server.core as core\n"
        "from coserve_server.settings import load_settings\n"
        "assert core._tracer(load_settings(repository='unused')) is None\n"
        "heavy = 'opentelemetry.sdk', 'opentelemetry.exporter'\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_without_a_valid_span_no_trace_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    record = Record()
    Tracer("http://127.0.0.1:1").begin(record, "POST", {})
    assert record.traceparent is None
