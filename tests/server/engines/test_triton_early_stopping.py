"""The engine `triton` asks members one after another."""

import time
from pathlib import Path

import pytest

from coserve_server.engines.triton.engine import TritonEngine
from coserve_server.observability.record import Record
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.early_stopping.rule import StoppingRule
from coserve_server.pipeline.in_turn import ask_in_turn
from tests.server.engines.engine_on_fake import IMAGES, until, with_engine
from tests.server.engines.fake_triton import FakeTriton
from tests.server.onnx_repository import write_repository

CHANCE = 0.25
"""The probability of each class by the servers' logits, which are all 0."""


async def ask(engine: TritonEngine, confidence: float, seconds: float = 30) -> Record:
    record = Record()
    rule = StoppingRule(confidence, None, None, 1, always=True)
    deadline_ns = time.perf_counter_ns() + round(seconds * 1e9)
    batcher = Batcher(engine)
    await ask_in_turn(record, batcher, engine.ensembles["pair"], IMAGES, rule, 2, deadline_ns)
    assert not batcher._staged
    return record


@pytest.mark.parametrize("batching", [False, True])
def test_members_share_the_images_and_each_asks_the_other_only_if_it_is_not_sure(
    tmp_path: Path, batching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TritonEngine, "batches", lambda _engine, _ensemble: batching)

    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        (fake,) = fakes
        assert (await ask(engine, CHANCE - 0.01)).answered == [(0,), (1,)]
        assert sorted(request.model_name for request in fake.requests) == ["pair_member0", "pair_member1"]
        assert {request.inputs[0].shape[0] for request in fake.requests} == {1}
        fake.requests.clear()
        assert (await ask(engine, CHANCE + 0.01)).answered == [(0, 1), (0, 1)]
        assert sorted(request.model_name for request in fake.requests) == [
            "pair_member0", "pair_member0", "pair_member1", "pair_member1"
        ]  # fmt: skip

    with_engine(write_repository(tmp_path / "models"), use)


def test_a_member_that_hangs_is_replaced_and_its_call_is_cancelled(tmp_path: Path) -> None:
    async def use(engine: TritonEngine, fakes: list[FakeTriton]) -> None:
        (fake,) = fakes
        fake.hanging.add("pair_member0")
        record = await ask(engine, CHANCE - 0.01, seconds=4)
        assert record.answered == [(1,), (1,)]
        assert not record.lacks_members
        await until(lambda: fake.cancelled == ["pair_member0"])

    with_engine(write_repository(tmp_path / "models"), use)
