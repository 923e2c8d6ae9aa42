"""Ensembles run side by side on cores that no other one uses, and take turns on those that they share."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.record import Record
from coserve_server.outcomes import MemberRun, Place, Share
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.early_stopping.rows import StagedRequest
from coserve_server.pipeline.early_stopping.rule import StoppingRule
from tests.server.pipeline.held_engine import FOUR, OTHER, PAIR, HeldEngine, ask, check_empty, images, settle

ONE_EACH = [{0}, {1}, {2}, {3}]
ALL = [{0, 1, 2, 3}]
RULE = StoppingRule(0.9, 0.0, None, 1, always=True)

Use = Callable[[Batcher, HeldEngine], Awaitable[None]]


def held(use: Use, **cores: list[set[int]]) -> list[tuple[str, int]]:
    """Return the ensembles and copies of the batches that started until `use` ended."""

    async def go() -> list[tuple[str, int]]:
        engine = HeldEngine(**cores)
        batcher = Batcher(engine)
        await use(batcher, engine)
        started = engine.started
        while batcher._lines:
            engine.answer()
            await settle()
        engine.answer()
        await settle()
        check_empty(batcher)
        return started

    return asyncio.run(go())


def test_a_batch_takes_a_copy_whose_cores_are_free() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for model in (PAIR, OTHER, FOUR):
            ask(batcher, 1, model=model)
            await settle()
        assert engine.started == [("pair", 0), ("other", 1)]
        assert all(batcher.busy(model) for model in (PAIR, OTHER, FOUR))
        await engine.end(1)
        assert not batcher.busy(PAIR)
        assert not batcher.busy(OTHER)
        assert batcher.busy(FOUR)
        await engine.end(0)

    halves = [{0, 1}, {2, 3}]
    assert held(use, pair=halves, other=halves, four=[{1, 2}]) == [("pair", 0), ("other", 1), ("four", 0)]


def test_an_ensemble_that_needs_all_cores_gets_them_when_its_turn_has_come() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for _ in range(2):
            for model in (PAIR, OTHER):
                ask(batcher, 1, 2, 3, 4, model=model)
                await settle()
        ask(batcher, 1, model=FOUR)
        for batch in range(4):
            assert len(engine.started) == 4, "the cores of batches that have ended are kept for it"
            for model in (PAIR, OTHER):
                ask(batcher, 1, model=model)
            await settle()
            await engine.end(batch)
        assert engine.started[4:] == [("four", 0)]
        ask(batcher, 1, model=FOUR)
        await engine.end(4)

    started = held(use, pair=ONE_EACH, other=ONE_EACH, four=ALL)
    assert started[:4] == [("pair", 0), ("other", 1), ("pair", 2), ("other", 3)]
    assert sorted(started[5:]) == [("other", 1), ("pair", 0)], "then it is the others' turn"


def test_an_ensemble_that_waits_keeps_others_from_its_own_cores_alone() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for model in (PAIR, OTHER, FOUR):
            ask(batcher, 1, model=model)
            await settle()

    assert held(use, pair=[{0}], other=[{0, 1}], four=[{2}]) == [("pair", 0), ("four", 0)]


def test_batches_where_another_one_waits_do_not_count_where_none_does() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for values, model in (((1, 1), PAIR), ((2, 2), PAIR), ((3,), OTHER), ((4,), PAIR)):
            ask(batcher, *values, model=model)
            await settle()

    started = held(use, pair=[{0}, {1}, {2}], other=[{0, 1}])
    assert started == [("pair", 0), ("pair", 1), ("pair", 2)]


def test_one_with_a_batch_too_small_to_start_yet_keeps_no_free_core() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for values, model in (((1, 1), PAIR), ((2,), PAIR), ((3,), OTHER)):
            ask(batcher, *values, model=model)
            await settle()

    assert held(use, pair=[{0}], other=[{0}, {1}]) == [("pair", 0), ("other", 1)]


def test_a_turn_starts_a_batch_in_every_free_copy() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        for values, model in (((1,), FOUR), (range(14), PAIR), ((2,), FOUR)):
            ask(batcher, *values, model=model)
            await settle()
        await engine.end(0)
        for batch in (1, 2, 3, 4):
            assert len(engine.started) == 5
            await engine.end(batch)

    started = held(use, pair=ONE_EACH, four=ALL)
    assert started == [("four", 0), ("pair", 0), ("pair", 1), ("pair", 2), ("pair", 3), ("four", 0)]


def test_a_copy_that_becomes_free_goes_to_the_next_in_turn() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, *range(20))
        await settle()
        ask(batcher, *range(5), model=OTHER)
        ask(batcher, *range(3))
        for batch in (3, 1, 2):
            await engine.end(batch)

    started = held(use, pair=ONE_EACH, other=ONE_EACH)
    # The fifth is as large as the first and waits behind it.
    assert started[:5] == [("pair", 0), ("pair", 1), ("pair", 2), ("pair", 3), ("pair", 0)]
    assert started[5:] == [("other", 3), ("pair", 1), ("other", 2)]


def test_a_request_that_leaves_gives_up_its_turn_at_once() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1)
        await settle()
        gone = ask(batcher, 2, model=OTHER)
        await settle()
        ask(batcher, 3, model=FOUR)
        await settle()
        assert engine.started == [("pair", 0)]
        gone.cancel()
        await settle()

    assert held(use, pair=[{0}], other=[{0, 1}], four=[{1}]) == [("pair", 0), ("four", 0)]


def test_images_that_may_stop_early_keep_to_the_free_copies() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        ask(batcher, 1, model=OTHER)
        await settle()
        line = batcher.stage(PAIR, RULE)
        request = StagedRequest(Record(), images(1, 2, 3, 4))
        line.add(request)
        await settle()
        ask(batcher, 1, model=FOUR)
        await settle()
        assert engine.started == [("other", 0), *[("m0", 1), ("m1", 1)] * 2]
        more = StagedRequest(Record(), images(5, 6))
        line.add(more)
        for batch in (1, 2, 3, 4):
            await engine.end(batch)
        assert len(engine.started) == 5, "it is not their turn"
        await engine.end(0)
        assert engine.started[5:] == [("four", 0)]
        await engine.end(5)
        assert {copy for _, copy in engine.started[6:]} == {0, 1}
        for one in (request, more):
            line.withdraw(one)

    held(use, pair=[{0}, {1}], other=[{0}], four=[{0, 1}])


def test_a_bug_of_the_engine_fails_one_ensemble_s_requests_alone() -> None:
    async def use(batcher: Batcher, engine: HeldEngine) -> None:
        places = engine.places

        def broken(ensemble: Ensemble) -> Sequence[Place]:
            if ensemble is PAIR:
                raise ZeroDivisionError
            return places(ensemble)

        engine.places = broken  # type: ignore[method-assign]
        failed = ask(batcher, 1)
        ask(batcher, 1, model=OTHER)
        with pytest.raises(ZeroDivisionError):
            await failed
        await settle()

    assert held(use) == [("other", 0)]


class Watched(HeldEngine):
    """Checks that no core is shared, and counts the batches that start on cores that others wait for.

    Attributes:
        pending: numbers of images that wait, by ensemble.
        overtaken: by the ensemble that waits and the one that starts.
    """

    def __init__(self, **cores: list[set[int]]) -> None:
        super().__init__(**cores)
        self.pending: Counter[str] = Counter()
        self.overtaken: Counter[tuple[str, str]] = Counter()

    @property
    def open(self) -> list[int]:
        return [batch for batch, run in enumerate(self.runs) if not all(future.done() for future in run)]

    def start(
        self, ensemble: Ensemble, images: Images, records: Sequence[Record] = (), copy: int = 0
    ) -> "list[asyncio.Future[MemberRun]]":
        name = ensemble.name
        cores = self.cores[name][copy]
        for batch in self.open:
            other, other_copy = self.started[batch]
            assert other == name or not cores & self.cores[other][other_copy], "two share a core"
        self.pending[name] -= len(images)
        for other in self.cores:
            self.overtaken[name, other] = 0
            if other != name and self.pending[other] and cores & set().union(*self.cores[other]):
                self.overtaken[other, name] += 1
                assert self.overtaken[other, name] <= len(self.cores[name]), "more than one turn"
        return super().start(ensemble, images, records, copy)


@st.composite
def layouts(draw: st.DrawFn) -> list[set[int]]:
    order = draw(st.permutations(range(5)))
    size = draw(st.integers(1, 5))
    copies = [set(order[start : start + size]) for start in range(0, 6 - size, size)]
    return copies[: draw(st.integers(1, len(copies)))]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_core_is_shared_and_nobody_is_overtaken_for_more_than_a_turn(data: st.DataObject) -> None:
    models = (PAIR, OTHER, FOUR)
    engine = Watched(**{model.name: data.draw(layouts(), model.name) for model in models})
    steps = data.draw(st.lists(st.sampled_from([*models, None, None]), max_size=25), "requests and answers")

    async def go() -> None:
        batcher = Batcher(engine)
        tasks: list[asyncio.Task[list[Share]]] = []
        for model in [*steps, *models]:
            if model is not None:
                size = data.draw(st.integers(1, 6), "images")
                engine.pending[model.name] += size
                tasks.append(ask(batcher, *range(size), model=model))
                await settle()
            elif engine.open:
                await engine.end(data.draw(st.sampled_from(engine.open), "answer"))
        while opened := engine.open:
            await engine.end(data.draw(st.sampled_from(opened), "answer"))
        assert all(task.done() for task in tasks), "requests wait, and no batch runs"
        check_empty(batcher)

    asyncio.run(go())
