import asyncio
from typing import Any

import pytest

from coserve_server.errors import RepositoryError, UnknownModelError
from coserve_server.workers.channel import GoneError
from coserve_server.workers.whole import Whole
from coserve_server.workers.worker import State
from tests.server.workers.fakes import Fake, run, whole


def test_workers_load_in_turn_and_all_in_spite_of_an_error() -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log, load=RepositoryError("broken"))
        workers = whole(first, Fake(2, log, load=GoneError("")), Fake(3, log))
        with pytest.raises(RepositoryError, match="broken"):
            await workers.load(first, "pair")
        assert log == [part for n in (1, 2, 3) for part in ((n, "load", "pair"), (n, "done"))]
        first.errors = {}
        await workers.load(first, "pair")

    run(test)


def test_unloading_succeeds_if_a_worker_served_it() -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log, unload=UnknownModelError("not served"))
        second = Fake(2, log)
        workers = whole(first, second)
        await workers.unload(first, "pair")
        second.errors = first.errors
        with pytest.raises(UnknownModelError, match="not served"):
            await workers.unload(first, "pair")

    run(test)


def test_a_worker_that_comes_later_does_what_it_missed() -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log)
        late = Fake(2, log, State.STARTING)
        workers = whole(first, late)
        await workers.load(first, "pair")
        await workers.unload(first, "single")
        assert (2, "load", "pair") not in log
        log.clear()
        await workers.catch_up(late)
        assert sorted(log[:3:2]) == [(2, "load", "pair"), (2, "unload", "single")]
        assert late.state is State.READY

    run(test)


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_a_load_that_hangs_in_one_worker_does_not_keep_another_from_being_replaced(verb: str) -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log)
        present = [first]
        workers = Whole(present, 2, lambda: 0)  # type: ignore[arg-type]
        first.hangs.add(verb)
        changing = asyncio.ensure_future(getattr(workers, verb)(first, "pair"))
        await asyncio.sleep(0)
        late = Fake(2, log, State.STARTING)
        # What it is told when it is started, so it need not repeat it.
        assert workers.unloaded == {"unload": {"pair"}}.get(verb, frozenset())
        present.append(late)
        await workers.catch_up(late)
        assert late.state is State.READY
        assert log == [(1, verb, "pair")]
        changing.cancel()

    run(test)


def test_an_unload_that_failed_everywhere_is_undone_in_a_worker_that_starts() -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log, unload=UnknownModelError("not served"))
        late = Fake(2, log, State.STARTING)
        workers = whole(first, late)
        with pytest.raises(UnknownModelError):
            await workers.unload(first, "pair")
        assert workers.unloaded == frozenset()
        log.clear()
        await workers.catch_up(late)
        # It may have started without the ensemble.
        assert log[0] == (2, "load", "pair")

    run(test)


@pytest.mark.parametrize("fault", [RepositoryError("broken"), UnknownModelError("no such ensemble")])
def test_what_is_unloaded_stays_so_in_new_workers_until_a_load_succeeds(fault: Exception) -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log)
        late = Fake(2, log, State.STARTING)
        workers = whole(first, late)
        await workers.unload(first, "pair")
        first.errors = {"load": fault}
        with pytest.raises(type(fault)):
            await workers.load(first, "pair")
        assert workers.unloaded == {"pair"}
        assert late.missed == {"pair": "unload"}
        first.errors = {}
        await workers.load(first, "pair")
        assert workers.unloaded == frozenset()
        assert late.missed == {"pair": "load"}

    run(test)


def test_a_worker_that_becomes_ready_during_a_load_loads_too() -> None:
    async def test(log: list[Any]) -> None:
        first = Fake(1, log)
        late = Fake(2, log, State.STARTING)
        workers = whole(first, late)
        await workers.unload(first, "pair")
        log.clear()
        loading = asyncio.ensure_future(workers.load(first, "pair"))
        await asyncio.sleep(0)
        late.missed.clear()
        late.admit()
        await loading
        assert log[2:] == [(2, "load", "pair"), (2, "done")]

    run(test)


def test_a_worker_that_ends_gives_its_turn_to_load_to_the_next() -> None:
    async def test(log: list[Any]) -> None:
        workers = [Fake(number, log) for number in range(3)]
        both = whole(*workers)
        await both.take_turn(workers[0])
        waiting = [asyncio.ensure_future(both.take_turn(worker)) for worker in workers[1:]]
        await asyncio.sleep(0)
        both.end_turn(workers[2])
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        # It ended while it waited.
        workers[1].ended.set_result(-9)
        both.bury(workers[0])
        await asyncio.gather(*waiting)

    run(test)


def test_a_new_worker_gets_its_part_of_the_connections() -> None:
    async def test(log: list[Any]) -> None:
        late = Fake(3, log, State.STARTING)
        workers = whole(Fake(1, log, connections=8), Fake(2, log, connections=3), late)
        await workers.catch_up(late)
        # 11 connections are 3 for each of three.
        assert log == [(1, "shed", 5)]

    run(test)
