"""Batches of several requests' images, which no event loop copies."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from coserve_server.engines import base
from coserve_server.engines.base import Batch, Images, gather
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.observability.record import Record
from coserve_server.pipeline.batching import Batcher
from tests.server.engines.embedded import infer, with_engine
from tests.server.onnx_repository import write_repository

IMAGES: Images = np.random.default_rng(1).random((4, 3, 8, 8), np.float32)


def test_images_in_one_piece_are_not_copied() -> None:
    found = gather([(IMAGES, slice(1, 3))])
    assert isinstance(found, np.ndarray)
    assert np.shares_memory(found, IMAGES)
    np.testing.assert_array_equal(found, IMAGES[1:3])


@pytest.mark.parametrize(
    ("parts", "rows"),
    [([(IMAGES, slice(2, 4)), (IMAGES, slice(0, 1))], [2, 3, 0]), ([(IMAGES, [3, 1])], [3, 1])],
)
def test_the_first_thread_puts_a_batch_together_for_all(parts: list[base.Part], rows: list[int]) -> None:
    batch = gather(parts)
    assert isinstance(batch, Batch)
    assert len(batch) == len(rows)
    with ThreadPoolExecutor(4) as threads:
        arrays = list(threads.map(lambda _: batch.array(), range(8)))
    np.testing.assert_array_equal(arrays[0], IMAGES[rows])
    assert all(one is arrays[0] for one in arrays)


def test_requests_are_put_together_on_a_member_s_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repository(tmp_path)
    threads = []
    array = Batch.array

    def watched(batch: Batch) -> Images:
        threads.append(threading.current_thread())
        return array(batch)

    monkeypatch.setattr(Batch, "array", watched)

    async def use(engine: EmbeddedEngine) -> None:
        expected = await infer(engine, IMAGES[:2])
        batcher = Batcher(engine)
        never = time.perf_counter_ns() + 10**11
        pair = engine.ensembles["pair"]
        one, two = await asyncio.gather(
            *(batcher.start(Record(), pair, IMAGES[row : row + 1], never) for row in (0, 1))
        )
        assert one[0].batch is two[0].batch
        await one[0].batch.finished
        for member, run in zip(one[0].batch.members, expected, strict=True):
            np.testing.assert_allclose(member.result().logits, run.logits, atol=1e-5)

    with_engine(tmp_path, use)
    assert len(threads) == 2
    assert threading.main_thread() not in threads
