"""The engine `triton` over misbehaving servers; tests/integration has Triton itself."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.observability.record import Record
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.fan_out import fan_out
from tests.server.engines.engine_on_fake import IMAGES, infer, ready, until, with_engine
from tests.server.engines.fake_triton import FakeTriton, logits
from tests.server.onnx_repository import write_repository


def deadline_ns(seconds: float) -> int:
    return time.perf_counter_ns() + round(seconds * 1e9)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models")


def test_members_get_the_same_bytes_at_once(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        runs = await infer(engine)
        for run in runs:
            np.testing.assert_array_equal(run.logits, np.zeros((2, 4)))
            assert run.device == f"triton {engine._endpoints[0].address}"
            assert 0 < run.start_ns < run.end_ns
        assert [request.model_name for request in fakes[0].requests] == ["pair_member0", "pair_member1"]
        for request in fakes[0].requests:
            assert request.inputs[0].shape == [2, 3, 8, 8]
            assert request.raw_input_contents == [IMAGES.tobytes()]

    with_engine(repository, use)


BAD_ANSWERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "type": (lambda r: logits(r, np.zeros((2, 4)), "FP16"), "gave 'logits' as FP16, not FP32"),
    "bytes": (lambda r: _shaped(logits(r, np.zeros((2, 4))), [2, 5]), "gave 32 bytes for 'logits' [2, 5]"),
    "name": (lambda r: _named(logits(r, np.zeros((2, 4))), "x"), "gave no output 'logits'"),
    "nothing": (lambda r: _named(logits(r, []), "logits", contents=0), "gave no output 'logits'"),
}


def _shaped(response: Any, shape: list[int]) -> Any:
    response.outputs[0].shape[:] = shape
    return response


def _named(response: Any, name: str, contents: int = 1) -> Any:
    response.outputs[0].name = name
    del response.raw_output_contents[contents:]
    return response


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_invalid_answer_is_the_member_s_failure(repository: Path, case: str) -> None:
    answer, message = BAD_ANSWERS[case]

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].answers["pair_member1"] = answer
        sound, bad = await infer(engine)
        assert sound.failure is None
        assert bad.failure.reason.endswith(message)

    with_engine(repository, use)


def test_a_late_members_call_is_cancelled_at_the_server(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].hanging.add("pair_member1")
        record = Record()
        await fan_out(record, Batcher(engine), engine.ensembles["pair"], IMAGES, 1, deadline_ns(3))
        assert record.members[1].late
        assert record.members[0].failure is None
        await until(lambda: fakes[0].cancelled == ["pair_member1"])

    with_engine(repository, use)


def test_a_cancelled_request_is_cancelled_at_the_server(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].hanging |= {"pair_member0", "pair_member1"}
        request = asyncio.ensure_future(
            fan_out(Record(), Batcher(engine), engine.ensembles["pair"], IMAGES, 1, deadline_ns(1000))
        )
        await until(lambda: len(fakes[0].requests) == 2)
        request.cancel()
        await until(lambda: sorted(fakes[0].cancelled) == ["pair_member0", "pair_member1"])

    with_engine(repository, use)


def test_batches_go_to_the_servers_in_turn_and_whole(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for _ in range(4):
            first, second = await infer(engine)
            assert first.device == second.device
        assert [len(fake.requests) for fake in fakes] == [4, 4]

    with_engine(repository, use, servers=2)


def test_members_of_a_lost_server_run_on_another(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        for fake in fakes:
            fake.hanging.add("pair_member1")
        runs = engine.start(engine.ensembles["pair"], IMAGES)
        await runs[0]
        await until(lambda: sum(len(fake.requests) for fake in fakes) == 2)
        lost = next(fake for fake in fakes if fake.requests)
        other = next(fake for fake in fakes if fake is not lost)
        other.hanging.clear()
        await lost.stop()
        assert (await runs[1]).failure is None
        assert [request.model_name for request in other.requests] == ["pair_member1"]
        assert all(run.failure is None for run in await infer(engine))
        assert ready(engine) == 2

    with_engine(repository, use, servers=2)


def test_members_of_a_frozen_server_run_on_another(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].awake.clear()
        for _ in range(2):
            assert all(run.failure is None for run in await infer(engine))
        assert len(fakes[1].requests) == 4
        await until(lambda: engine._endpoints[0].error is not None)
        fakes[0].awake.set()
        await until(lambda: engine._endpoints[0].error is None)
        for _ in range(2):
            assert all(run.failure is None for run in await infer(engine))
        assert len(fakes[0].requests) >= 4, "it gets its share of the load again"

    with_engine(repository, use, servers=2)


def test_a_sole_frozen_server_has_until_the_deadline(repository: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        fakes[0].awake.clear()
        runs = engine.start(engine.ensembles["pair"], IMAGES)
        await until(lambda: ready(engine) == 0)
        later = engine.start(engine.ensembles["pair"], IMAGES)
        fakes[0].awake.set()
        assert all(run.failure is None for run in await asyncio.gather(*runs, *later))
        await until(lambda: ready(engine) == 2)

    with_engine(repository, use)
