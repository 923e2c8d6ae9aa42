"""Images of several requests share the threads; large ones take processes of their own."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from coserve_images import apart
from coserve_images.apart import DecodingProcess, UnavailableError
from coserve_server.engines.base import Images
from coserve_server.errors import BadImageError, DeadlineError
from coserve_server.observability.record import Record
from coserve_server.pipeline import preparation
from coserve_server.pipeline.preparation import EncodedImage, Preparation
from tests.images.hostile_images import encoded
from tests.server.fake_engine import ensemble

SIZE = (200, 100)
FILES = [encoded(SIZE, kind) for kind in ("WEBP", "AVIF", "JPEG", "WEBP")]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Preparation]:
    monkeypatch.setattr(apart, "COPIED_PIXELS", 200 * 100 - 1)
    monkeypatch.setattr(apart, "FREED_PIXELS", 300 * 100 - 1)
    one = Preparation(2, 10**6, 10**8)
    yield one
    one.close()


def prepare(one: Preparation, files: list[bytes], seconds: float = 60) -> Images:
    how = ensemble().preprocessing
    deadline_ns = time.perf_counter_ns() + int(seconds * 1e9)
    return asyncio.run(one.prepare(Record("id"), [EncodedImage(file) for file in files], how, deadline_ns))


@pytest.fixture(scope="module")
def expected() -> Images:
    """Return what threads decode; made before `prepared` changes the limit."""
    one = Preparation(2, 10**6, 10**8)
    tensors = prepare(one, FILES)
    assert not one._processes._idle
    one.close()
    return tensors


def test_a_request_of_many_images_does_not_keep_others_waiting() -> None:
    one = Preparation(1, 10**6, 10**8)
    ended = []

    async def ask(files: list[bytes]) -> None:
        images = [EncodedImage(file) for file in files]
        await one.prepare(Record("id"), images, ensemble().preprocessing, time.perf_counter_ns() + 10**11)
        ended.append(len(files))

    async def go() -> None:
        await asyncio.gather(ask(FILES[2:3] * 20), ask(FILES[2:3] * 20), ask(FILES[2:3]))

    asyncio.run(go())
    one.close()
    assert ended[0] == 1


def test_processes_are_used_again(prepared: Preparation, expected: Images) -> None:
    for _ in range(3):
        np.testing.assert_array_equal(prepare(prepared, FILES), expected)
    with pytest.raises(BadImageError, match="image 1: broken or truncated"):
        prepare(prepared, [FILES[0], FILES[0][:-500]])
    processes = prepared._processes._idle
    assert 1 <= len(processes) <= 2
    ended = [process._process for process in processes]
    prepared.close()
    assert all(process.poll() is not None for process in ended)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "WEBP", "AVIF"])
def test_large_images_of_any_format_take_a_process(prepared: Preparation, kind: str) -> None:
    larger = (200, 100) if kind in ("WEBP", "AVIF") else (300, 100)
    prepare(prepared, [encoded((larger[0] - 1, 100), kind)])
    assert not prepared._processes._idle
    prepare(prepared, [encoded(larger, kind)])
    assert len(prepared._processes._idle) == 1


@pytest.mark.parametrize(("most", "processes"), [(32 * 3200, 0), (32 * 3200 - 1, 1)])
def test_a_thin_image_counts_as_large_as_it_is_resized(
    prepared: Preparation, monkeypatch: pytest.MonkeyPatch, most: int, processes: int
) -> None:
    monkeypatch.setattr(apart, "FREED_PIXELS", most)
    how = ensemble().preprocessing.model_copy(update={"height": 32, "width": 32, "resize_size": 32})
    images = [EncodedImage(encoded((3, 300), "PNG"))]
    asyncio.run(prepared.prepare(Record("id"), images, how, time.perf_counter_ns() + 10**11))
    assert len(prepared._processes._idle) == processes


@pytest.mark.parametrize(("most", "processes"), [(312, 0), (311, 1)])
def test_a_jpeg_counts_as_large_as_it_is_decoded(
    prepared: Preparation, monkeypatch: pytest.MonkeyPatch, most: int, processes: int
) -> None:
    # An eighth of 200 x 100 is decoded.
    monkeypatch.setattr(apart, "FREED_PIXELS", most)
    prepare(prepared, [FILES[2]])
    assert len(prepared._processes._idle) == processes


def test_a_process_that_another_thread_took_meanwhile_is_replaced(prepared: Preparation) -> None:
    class TakenMeanwhile(list[DecodingProcess]):
        def __bool__(self) -> bool:
            return True

    prepared._processes._idle = TakenMeanwhile()
    prepare(prepared, FILES[:1])
    prepared._processes._idle = [*prepared._processes._idle]
    assert len(prepared._processes._idle) == 1


def test_an_idle_process_that_was_killed_is_replaced(prepared: Preparation, expected: Images) -> None:
    prepare(prepared, FILES)
    for process in prepared._processes._idle:
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()
    np.testing.assert_array_equal(prepare(prepared, FILES), expected)


def test_without_processes_threads_decode(
    prepared: Preparation, expected: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_deadline_ns: int) -> DecodingProcess:
        raise UnavailableError("none here")

    monkeypatch.setattr(preparation, "DecodingProcess", refuse)
    np.testing.assert_array_equal(prepare(prepared, FILES), expected)


def test_the_deadline_is_kept(prepared: Preparation) -> None:
    prepare(prepared, FILES[:1])
    (process,) = prepared._processes._idle
    os.kill(process._process.pid, signal.SIGSTOP)
    with pytest.raises(DeadlineError):
        prepare(prepared, FILES[:1], 0.2)
