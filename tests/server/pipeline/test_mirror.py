"""Mirroring: another ensemble gets the same images, and no client notices."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from coserve_server.errors import SettingsError
from coserve_server.observability.mirroring import Comparison
from coserve_server.observability.record import Record
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline import mirror as mirror_module
from coserve_server.pipeline.classifier import Classification, Classifier
from coserve_server.settings import load_settings
from tests.server.fake_engine import run
from tests.server.pipeline.held_engine import OTHER, PAIR, HeldEngine, images

Use = Callable[["Served"], Awaitable[None]]


class Served:
    """A classifier that mirrors what `pair` answers to `other`, unless the settings say otherwise."""

    def __init__(self, **settings: Any) -> None:
        self.engine = HeldEngine()
        defaults = {"mirror": "other", "mirror_share": 1, "default_model": "pair"}
        self.core = Classifier(
            self.engine, load_settings(repository="unused", **{**defaults, **settings}), cores=1
        )

    async def ask(self, value: float = 1, model: str = "pair") -> Classification:
        record = Record(received_ns=time.perf_counter_ns())
        with self.core.admitted(record):
            return await self.core.infer(record, self.core.catalogue.ensemble(model), images(value))

    async def answer(self, value: float = 1, model: str = "pair") -> Classification:
        """Ask, and let the members answer at once."""
        asking = asyncio.ensure_future(self.ask(value, model))
        await self.given(model, value)
        self.release(1, 2)
        return await asking

    async def given(self, model: str, value: float) -> None:
        """Wait until the engine has got this as its latest batch."""
        await until(lambda: self.engine.batches_given[-1:] == [(model, [value])])

    def release(self, *logits: float) -> None:
        for future in self.engine.futures:
            if not future.done():
                future.set_result(run(0, 1, logits))

    @property
    def comparison(self) -> Comparison:
        assert self.core.mirror is not None
        return self.core.mirror.comparisons["pair", "1"]

    def outcomes(self) -> dict[str, int]:
        return dict(self.comparison.outcomes)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def serve(use: Use, **settings: Any) -> Served:
    async def go() -> Served:
        served = Served(**settings)
        try:
            await asyncio.wait_for(use(served), 30)
        finally:
            await served.core.close()
        return served

    return asyncio.run(go())


def test_a_mirrored_request_is_compared_with_its_answer() -> None:
    async def use(served: Served) -> None:
        for value, logits in ((1, (1, 2)), (2, (2, 1)), (3, (0, 1))):
            answer = await served.answer(value)
            assert answer.ensemble is PAIR
            await served.given("other", value)
            served.release(*logits)
            await until(lambda wanted=value: served.outcomes() == {"answered": wanted})  # type: ignore[misc]
        assert served.outcomes() == {"answered": 3}
        comparison = served.comparison
        assert (comparison.images, comparison.agreements) == (3, 2)
        assert sum(comparison.answer.counts) == sum(comparison.mirror.counts) == 3
        assert served.core.metrics.models.keys() == {"pair"}, "the mirror's own metrics are its clients'"

    serve(use)


def test_a_client_never_waits_for_the_mirror() -> None:
    async def use(served: Served) -> None:
        await served.answer(1)
        await served.given("other", 1)
        first = served.engine.futures[-2:]
        asking = asyncio.ensure_future(served.ask(2))
        await served.given("pair", 2)
        assert all(future.cancelled() for future in first), "the members were told to stop"
        assert served.outcomes() == {}
        served.release(1, 2)
        await asking
        for value in (1, 2):
            await served.given("other", value)
            served.release(1, 2)
        await until(lambda: served.outcomes() == {"answered": 2})

    serve(use)


def test_the_mirror_waits_until_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "IDLE_S", 0)

    async def use(served: Served) -> None:
        slow = Record(received_ns=time.perf_counter_ns())
        with served.core.admitted(slow):
            await served.answer(1)
            await asyncio.sleep(0.02)
            assert [name for name, _ in served.engine.batches_given] == ["pair"]
            with pytest.raises(ZeroDivisionError), served.core.admitted(Record()):
                raise ZeroDivisionError
            await asyncio.sleep(0.02)
            assert [name for name, _ in served.engine.batches_given] == ["pair"]
        await served.given("other", 1)

    serve(use)


def test_a_request_that_follows_at_once_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "IDLE_S", 0.02)

    async def use(served: Served) -> None:
        await served.answer(1)
        with served.core.admitted(Record()):
            await asyncio.sleep(0.06)
            assert [name for name, _ in served.engine.batches_given] == ["pair"]
        await served.given("other", 1)

    serve(use)


def test_what_waits_too_long_or_needs_too_much_memory_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    # The images of one request, and its answer: 4 * 4 * 3 * 4 and 2 * 8 bytes.
    monkeypatch.setattr(mirror_module, "MAX_WAITING_BYTES", 2 * (192 + 16))

    async def use(served: Served) -> None:
        assert served.core.mirror is not None
        with served.core.admitted(Record()):
            served.core.mirror._patience_ns = 0
            for value in range(3):
                await served.answer(value)
            assert served.outcomes() == {"busy": 1}
            served.core.mirror._patience_ns = 2**62
        await until(lambda: served.outcomes() == {"busy": 3})
        await served.answer(4)
        await served.given("other", 4)
        served.release(1, 2)
        await until(lambda: served.outcomes() == {"busy": 3, "answered": 1})

    serve(use)


def test_a_share_is_mirrored() -> None:
    async def use(served: Served) -> None:
        with served.core.admitted(Record()):
            for value in range(8):
                await served.answer(value)
                await served.answer(value, "other")
        for value in (3, 7):
            await served.given("other", value)
            served.release(1, 2)
        await until(lambda: served.outcomes() == {"answered": 2})
        assert served.core.mirror is not None
        assert served.core.mirror.comparisons.keys() == {("pair", "1")}, "its own requests are not mirrored"

    serve(use, mirror_share=0.25)


def test_a_member_that_is_the_mirror_does_not_mirror_its_own_requests() -> None:
    async def use(served: Served) -> None:
        with served.core.admitted(Record()):
            await served.answer(1, "m0")
            await served.answer(2)
        await served.given("m0", 2)
        served.release(1, 2)
        await until(lambda: served.outcomes() == {"answered": 1})
        assert served.core.mirror is not None
        assert served.core.mirror.comparisons.keys() == {("pair", "1")}

    serve(use, mirror="m0", serve_members=True)


def fail(served: Served) -> None:
    def broken(*_: object) -> list["asyncio.Future[MemberRun]"]:
        raise OSError("the engine is broken")

    served.engine.start = broken  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Served], object]] = {
    "missing": lambda served: served.engine.ensembles.pop("other"),
    "incomparable": lambda served: served.engine.ensembles.update(
        other=replace(OTHER, labels=("dog", "cat"))
    ),
    "failed": fail,
}


@pytest.mark.parametrize("outcome", CHANGES)
def test_a_mirror_that_cannot_answer_is_counted_and_no_client_notices(outcome: str) -> None:
    async def use(served: Served) -> None:
        with served.core.admitted(Record()):
            await served.answer()
            CHANGES[outcome](served)
        await until(lambda: served.outcomes() == {outcome: 1})
        if outcome != "failed":
            await served.answer(2)
            assert served.outcomes() == {outcome: 2}

    serve(use)


def test_a_mirror_is_a_name_and_maybe_a_version() -> None:
    def read(text: str | None) -> object:
        return load_settings(repository="unused", mirror=text).mirrored

    assert read(None) is None
    assert read("photos") == ("photos", None)
    assert read("me@home@2") == ("me@home", "2")
    for wrong in ("photos@", "photos@two", "@2"):
        with pytest.raises(SettingsError, match=r"mirror: .* is neither NAME nor NAME@VERSION"):
            read(wrong)
