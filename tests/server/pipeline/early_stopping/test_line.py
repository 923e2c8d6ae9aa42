"""Members that take images one after another, in any order of answers, failures and cancellations."""

import asyncio
import math
import time
from collections import Counter
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coserve_server.errors import NoQuorumError
from coserve_server.observability.record import Record
from tests.server.pipeline.early_stopping.staged import StagedEngine, Staging, images, model, run, settle

SURE = 5.0
"""A logit whose probability is above the confidence of 0.9; 0 is an even chance."""


def probability(logits: list[float], temperature: float = 1.0) -> float:
    """The probability of the likelier of two classes, the second of which has the logit 0."""
    return 1 / (1 + math.exp(-abs(sum(logits) / len(logits)) / temperature))


def everything(staging: Staging) -> Counter[str]:
    return Counter(run.names[0] for _, run in staging.batches)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_each_image_gets_members_until_it_is_sure_and_none_after(data: st.DataObject) -> None:
    members = data.draw(st.integers(2, 4), "members")
    lanes = data.draw(st.integers(1, members), "lanes")
    minimum = data.draw(st.integers(1, members - 1), "minimum")
    batching = data.draw(st.booleans(), "batching")
    copies = data.draw(st.integers(1, 3), "copies")
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6), "images per request")
    logits = data.draw(
        st.lists(st.lists(st.sampled_from([0.0, 1.0, 3.0, 6.0]), min_size=4, max_size=4), min_size=1),
        "logits",
    )
    temperatures = {size: 1 + size / 10 for size in range(1, members + 1)}
    engine = StagedEngine(
        model(members, 3, temperatures), lanes, lambda image, member: logits[int(image) % len(logits)][member]
    )
    engine.batching = batching
    engine.copies = copies
    staging = Staging(engine, minimum)
    numbers = count()
    requests = [[float(next(numbers)) for _ in range(size)] for size in sizes]

    async def use() -> None:
        tasks = []
        for values in requests:
            tasks.append(staging.ask(*values))
            if data.draw(st.booleans(), "answers before the next request"):
                await settle()
                if engine.open:
                    engine.answer(engine.open[0])
        await staging.finish(*tasks, order=lambda number: data.draw(st.integers(0, number - 1), "next"))
        for values, task in zip(requests, tasks, strict=True):
            check(values, task.result())
        staging.check_empty()

    def check(values: list[float], record: Record) -> None:
        assert len(record.answered) == len(values)
        early = 0
        for index, (value, answered) in enumerate(zip(values, record.answered, strict=True)):
            asked = engine.asked[value]
            assert len(asked) == len(set(asked)), "no member twice"
            assert sorted(asked) == list(answered), "every answer counts, and there is no other"
            for taken in range(minimum, len(asked) + 1):
                own = [engine.certainty(value, member) for member in asked[:taken]]
                sure = probability(own, temperatures[taken]) > staging.confidence
                assert sure == (taken == len(asked)) or taken == members
            assert len(asked) >= minimum
            early += len(asked) < members
            for member, outcome in enumerate(record.members):
                if member in answered:
                    assert outcome.logits is not None
                    assert outcome.logits[index].tolist() == [engine.certainty(value, member), 0]
                elif outcome.logits is not None:
                    assert np.isnan(outcome.logits[index]).all()
        assert (record.stopped_early, record.degraded, record.lacks_members) == (early, False, False)
        assert all(outcome.failure is None for outcome in record.members)

    run(use)
    assert sum(one.size for _, one in staging.batches) == sum(map(len, engine.asked.values()))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_failures_and_cancellations_lose_nothing(data: st.DataObject) -> None:
    members = data.draw(st.integers(2, 4), "members")
    quorum = data.draw(st.integers(1, members), "quorum")
    engine = StagedEngine(
        model(members, 3), data.draw(st.integers(1, members)), lambda image, _: SURE * (int(image) % 2)
    )
    staging = Staging(engine, 1, quorum)

    async def use() -> None:
        numbers = count()
        values = [[float(next(numbers)) for _ in range(size)] for size in (1, 4, 2, 7, 1)]
        tasks = [staging.ask(*own) for own in values]
        failed: dict[float, set[int]] = {}
        steps = st.tuples(st.sampled_from(["answer", "answer", "fail", "cancel"]), st.integers(0, 20))
        plan = iter(data.draw(st.lists(steps, max_size=30), "plan"))
        await settle()
        while not all(task.done() for task in tasks):
            step, number = next(plan, ("answer", 0))
            if step == "cancel":
                tasks[number % len(tasks)].cancel()
            elif engine.open:
                chosen = engine.open[number % len(engine.open)]
                engine.answer(chosen, failure="broke" if step == "fail" else None)
                if step == "fail":
                    for image in chosen.images:
                        failed.setdefault(image, set()).update(chosen.members)
            await settle()
            waiting = [task for task in tasks if not task.done()]
            assert engine.open or not waiting, "somebody waits for nothing"
        for own, task in zip(values, tasks, strict=True):
            for image in own:
                assert len(engine.asked.get(image, [])) == len(set(engine.asked.get(image, [])))
            if task.cancelled():
                continue
            answers = [set(engine.asked[image]) - failed.get(image, set()) for image in own]
            sure = [bool(len(answer) and image % 2) for image, answer in zip(own, answers, strict=True)]
            enough = all(one or len(answer) >= quorum for one, answer in zip(sure, answers, strict=True))
            if not enough:
                assert isinstance(task.exception(), NoQuorumError)
                continue
            record = task.result()
            assert record.answered == [tuple(sorted(answer)) for answer in answers]
            assert record.lacks_members == any(
                not one and len(answer) < members for one, answer in zip(sure, answers, strict=True)
            )
        staging.check_empty()

    run(use)


def test_lanes_start_with_different_members_and_share_what_waits() -> None:
    engine = StagedEngine(model(2, 64), 2, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        task = staging.ask(*map(float, range(8)))
        await settle()
        assert [(given.members, given.images) for given in engine.log] == [
            ([0], [0, 1]), ([1], [2, 3]), ([0], [4, 5]), ([1], [6, 7])
        ]  # fmt: skip
        await staging.finish(task)

    run(use)
    assert everything(staging) == {"m0": 2, "m1": 2}


def test_an_idle_lane_takes_images_that_have_most_answers_first() -> None:
    engine = StagedEngine(model(2, 1), 2, lambda image, _: 0 if image == 0 else SURE)
    staging = Staging(engine)

    async def use() -> None:
        tasks = [staging.ask(float(value)) for value in range(6)]
        await settle()
        assert [(given.members, given.images) for given in engine.log] == [
            ([0], [0]), ([1], [1]), ([0], [2]), ([1], [3])
        ]  # fmt: skip
        engine.answer(engine.log[0])
        await settle()
        engine.answer(engine.log[1])
        await settle()
        assert (engine.log[-1].members, engine.log[-1].images) == ([1], [0]), "before 5, which came later"
        await staging.finish(*tasks)

    run(use)


def test_members_of_one_lane_take_turns() -> None:
    engine = StagedEngine(model(4, 1), 2, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        await staging.finish(*[staging.ask(float(value)) for value in range(12)])

    run(use)
    assert everything(staging) == {"m0": 3, "m1": 3, "m2": 3, "m3": 3}


def test_single_images_one_after_another_begin_with_all_members_in_turn() -> None:
    engine = StagedEngine(model(2), 2, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        for value in range(4):
            await staging.finish(staging.ask(float(value)))

    run(use)
    assert [given.members for given in engine.log] == [[0], [1], [0], [1]]


def test_a_second_batch_waits_behind_one_that_is_no_larger() -> None:
    engine = StagedEngine(model(2, 4), 1, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def use() -> None:
        tasks = [staging.ask(0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
        await settle()
        assert [given.images for given in engine.log] == [[0, 1, 2], [3, 4, 5]]
        tasks.append(staging.ask(6.0))
        await settle()
        assert len(engine.log) == 2, "two batches are enough"
        engine.answer(engine.log[0])
        await settle()
        assert len(engine.log) == 2, "the next one would be smaller than the one that runs"
        await staging.finish(*tasks)

    run(use)


def test_every_copy_of_a_lane_has_a_batch() -> None:
    engine = StagedEngine(model(2, 8), 2, lambda image, member: SURE)
    engine.copies = 3
    staging = Staging(engine)

    async def use() -> None:
        tasks = [staging.ask(*range(start, start + 6)) for start in range(0, 24, 6)]
        await settle()
        busy = [(given.members, len(given.images)) for given in engine.open]
        # 24 images for two lanes of three copies, with one batch more behind each lane.
        assert sorted(busy) == [([0], 2)] * 4 + [([1], 2)] * 4
        await staging.finish(*tasks)
        staging.check_empty()

    run(use)


def test_an_idle_copy_takes_a_small_batch_while_two_are_at_another_one() -> None:
    engine = StagedEngine(model(2, 8), 1, lambda _image, _member: SURE)
    engine.copies = 2
    staging = Staging(engine)

    async def use() -> None:
        task = staging.ask(*range(7))
        await settle()
        assert [len(given.images) for given in engine.log] == [2, 2, 2]
        engine.answer(engine.log[1])
        await settle()
        assert len(engine.log) == 4
        await staging.finish(task)
        staging.check_empty()

    run(use)


@pytest.mark.parametrize("staged_waits", [True, False])
def test_whole_batches_and_images_that_stop_early_take_turns(staged_waits: bool) -> None:
    engine = StagedEngine(model(2, 1), 2, lambda _image, _member: SURE)
    staging = Staging(engine)

    async def ask_whole(value: float) -> None:
        deadline_ns = time.perf_counter_ns() + 30 * 10**9
        (share,) = await staging.batcher.start(Record(), engine.whole, images(value), deadline_ns)
        await share.batch.finished

    async def use() -> None:
        def one(value: float, staged: bool) -> asyncio.Task[Any]:
            return staging.ask(value) if staged else asyncio.create_task(ask_whole(value))

        many = [one(float(value), not staged_waits) for value in range(20)]
        await settle()
        running = len(engine.log)
        late = one(99.0, staged_waits)
        await staging.finish(late)
        (turn,) = (index for index, given in enumerate(engine.log) if given.images == [99])
        assert turn <= running + 1, "one batch may start before it"
        await staging.finish(*many)
        staging.check_empty()

    run(use)
