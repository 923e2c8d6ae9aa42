"""Overlapping requests keep their own ids and traces, in the log and in calls to Triton."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coserve_server.api.app import build_app
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.ensembles.repository import read_repository
from coserve_server.machine.cores import Cores
from coserve_server.observability.logs import name_request
from coserve_server.observability.tracing import Tracer
from coserve_server.pipeline.classifier import Classifier
from coserve_server.settings import load_settings
from tests.server.engines.engine_on_fake import TritonEngine, until
from tests.server.engines.fake_triton import FakeTriton, logits
from tests.server.fake_engine import png
from tests.server.onnx_repository import FAILS, write_repository
from tests.server.otlp import collector

IDS = [f"request-{index}" for index in range(6)]
FAILED = "member pair_member1 failed"


@pytest.fixture
def named_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The captured log, with ids as the server's own handler adds them."""
    caplog.handler.addFilter(name_request)
    with caplog.at_level(logging.WARNING, "coserve_server"):
        yield caplog
    caplog.handler.removeFilter(name_request)


def ids_of_failures(log: pytest.LogCaptureFixture) -> Counter[str]:
    lines = [record for record in log.records if record.getMessage().startswith(FAILED)]
    return Counter(getattr(record, "request_id", "") for record in lines)


async def ask_six(app: Any) -> list[httpx.Response]:
    """Send six requests that overlap, each with an id of its own."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await asyncio.gather(
            *(
                http.post("/v1/classify", files={"files": ("a.png", png())}, headers={"X-Request-Id": name})
                for name in IDS
            )
        )


def test_batches_at_triton_carry_the_id_and_trace_of_their_own_request(
    tmp_path: Path, named_log: pytest.LogCaptureFixture
) -> None:
    repository = write_repository(tmp_path, max_batch_size=1)

    async def go(url: str) -> tuple[list[httpx.Response], list[tuple[str, str | None]]]:
        fake = FakeTriton(repository)
        fake.answers["pair_member1"] = lambda request: logits(request, [[0, 0, 0, 0]], "INT32")
        settings = load_settings(
            engine="triton", triton_url=await fake.start(), triton_refresh_ms=20, min_members=1
        )
        engine = await TritonEngine.connect(settings)
        core = Classifier(engine, settings, cores=1)
        tracer = Tracer(url)
        try:
            await until(lambda: "pair" in engine.ensembles)
            assert not engine.batches(engine.ensembles["pair"]), (
                "the batcher of this process makes the batches"
            )
            responses = await ask_six(build_app(core, tracer=tracer))
        finally:
            await core.close()
            await tracer.close()
            await fake.stop()
        return responses, fake.inferences

    with collector() as received:
        responses, inferences = asyncio.run(go(received.url))
    assert [response.status_code for response in responses] == [200] * 6
    traces = [response.headers["traceresponse"] for response in responses]
    assert len(set(traces)) == 6
    assert Counter(inferences) == Counter(
        (model, trace) for trace in traces for model in ("pair_member0", "pair_member1")
    )
    assert ids_of_failures(named_log) == Counter(IDS)


@pytest.mark.parametrize("max_batch_size", [1, 8])
def test_the_log_names_all_requests_of_a_batch(
    tmp_path: Path, named_log: pytest.LogCaptureFixture, max_batch_size: int
) -> None:
    write_repository(tmp_path, max_batch_size=max_batch_size, faults={1: FAILS})
    settings = load_settings(repository=tmp_path, min_members=1)

    async def go() -> list[httpx.Response]:
        engine = create_engine(EngineOptions(), Cores(2, None), read_repository(tmp_path))
        core = Classifier(engine, settings, cores=2)
        try:
            return await ask_six(build_app(core))
        finally:
            await core.close()

    responses = asyncio.run(go())
    assert [response.status_code for response in responses] == [200] * 6
    named = ids_of_failures(named_log)
    assert Counter(name for ids in named.elements() for name in ids.split(", ")) == Counter(IDS)
    assert (len(named) < 6) == (max_batch_size > 1), "later requests share a batch where they may"
