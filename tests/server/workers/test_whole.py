import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coserve_server.catalogue.attempts import Attempt
from coserve_server.errors import RepositoryError, UnknownModelError
from coserve_server.workers.channel import GoneError
from coserve_server.workers.summing import Condition, Snapshot
from coserve_server.workers.whole import Whole
from coserve_server.workers.worker import State


class Fake:
    """A worker that notes what it is told, and raises the errors given for a call."""

    def __init__(
        self,
        number: int,
        log: list[Any],
        state: State = State.READY,
        connections: int = 0,
        **errors: Exception,
    ) -> None:
        self.number = number
        self.state = state
        self.connections = connections
        self.is_late = False
        self.condition = Condition()
        self.missed: dict[str, str] = {}
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.channel = self
        self.log = log
        self.errors = errors
        self.hangs: set[str] = set()

    async def call(self, name: str, model: str) -> None:
        self.log.append((self.number, name, model))
        if name in self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.log.append((self.number, "done"))
        if name in self.errors:
            raise self.errors[name]

    def notify(self, name: str, argument: object) -> None:
        self.log.append((self.number, name, argument))

    async def snapshot(self) -> Snapshot:
        return Snapshot()

    async def count_connections(self) -> int:
        return self.connections

    def admit(self) -> None:
        self.state = State.READY

    def last_counts(self) -> Snapshot:
        return Snapshot()


def run(test: Callable[[list[Any]], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test([]), 60))  # type: ignore[arg-type]


def whole(*workers: Fake, polls: bool = True) -> Any:
    return Whole(workers, len(workers), lambda: 0, polls=polls)  # type: ignore[arg-type]


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


def test_every_worker_hears_of_the_others_faults() -> None:
    async def test(log: list[Any]) -> None:
        workers = [Fake(1, log), Fake(2, log), Fake(3, log, State.LEAVING)]
        workers[1].condition = Condition(["pair: 2 members are needed"])
        workers[2].condition = Condition(["gone"])
        whole(*workers).spread_faults()
        assert log == [(1, "elsewhere", ["worker 2: pair: 2 members are needed"]), (2, "elsewhere", [])]

    run(test)


def test_a_new_worker_gets_its_part_of_the_connections() -> None:
    async def test(log: list[Any]) -> None:
        late = Fake(3, log, State.STARTING)
        workers = whole(Fake(1, log, connections=8), Fake(2, log, connections=3), late)
        await workers.catch_up(late)
        # 11 connections are 3 for each of three.
        assert log == [(1, "shed", 5)]

    run(test)


def test_an_ensemble_that_one_worker_could_not_load_and_another_serves_is_a_fault() -> None:
    async def test(log: list[Any]) -> None:
        first, second = Fake(1, log), Fake(2, log)
        workers = whole(first, second)
        first.condition = Condition(served={"pair": ["1"], "new": ["1"]}, not_served={"odd": "broken"})
        # It has not loaded `new` yet, which is no fault; nobody serves `odd`.
        second.condition = Condition(not_served={"pair": "no network", "odd": "broken"})
        workers.spread_faults()
        fault = "worker 2: pair is not served, but by other workers: no network"
        assert log == [(1, "elsewhere", [fault]), (2, "elsewhere", [fault])]
        assert await zeros(workers) == [{"model": "pair", "version": "1"}]
        second.state = State.LEAVING
        assert await zeros(workers) == []

    async def zeros(workers: Any) -> list[dict[str, str]]:
        metrics = (await workers.total(None)).metrics
        (family,) = (metric for metric in metrics if metric.name == "coserve_model_ready")
        return [sample.labels for sample in family.samples if sample.value == 0]

    run(test)


BROKEN = Attempt("broken files", 1)
LACKS = Condition(not_served={"pair": "no network"}, attempts={"pair": BROKEN})


def serves(files: str, read_ns: int) -> Condition:
    return Condition(served={"pair": ["1"]}, attempts={"pair": Attempt(files, read_ns)})


def missing(workers: Any) -> list[int]:
    """Return the numbers of the workers that lack an ensemble."""
    workers.spread_faults()
    return [worker.number for worker, _, _ in workers.missing()]


def test_a_worker_that_has_not_loaded_repaired_files_yet_is_no_fault() -> None:
    async def test(log: list[Any]) -> None:
        first, second = Fake(1, log), Fake(2, log)
        workers = whole(first, second)
        first.condition = second.condition = LACKS
        assert missing(workers) == []
        first.condition = serves("repaired files", 2)
        assert missing(workers) == []
        # It has tried them in vain.
        second.condition = Condition(
            not_served=LACKS.not_served, attempts={"pair": Attempt("repaired files", 3)}
        )
        assert missing(workers) == [2]
        # Others have loaded further files; it was a fault before.
        first.condition = serves("other files", 4)
        assert missing(workers) == [2]
        second.condition = serves("other files", 5)
        assert missing(workers) == []

    run(test)


@pytest.mark.parametrize("served", [("older files", 0), ("broken files", 2)])
def test_a_worker_that_will_not_read_other_files_is_a_fault(served: tuple[str, int]) -> None:
    """A replacement finds a broken new version, or has no memory for what another has loaded."""

    async def test(log: list[Any]) -> None:
        first, second = Fake(1, log), Fake(2, log)
        first.condition = serves(*served)
        second.condition = LACKS
        assert missing(whole(first, second)) == [2]

    run(test)


def test_without_polling_a_worker_reads_other_files_only_while_a_client_s_call_lasts() -> None:
    async def test(log: list[Any]) -> None:
        first, second = Fake(1, log), Fake(2, log)
        workers = whole(first, second, polls=False)
        second.hangs.add("load")
        loading = asyncio.ensure_future(workers.load(first, "pair"))
        while (2, "load", "pair") not in log:  # noqa: ASYNC110
            await asyncio.sleep(0)
        first.condition = serves("repaired files", 2)
        second.condition = LACKS
        assert missing(workers) == []
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert missing(workers) == [2]

    run(test)
