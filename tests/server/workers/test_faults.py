"""What workers hear of the faults of others."""

import asyncio
from typing import Any

import pytest

from coserve_server.catalogue.attempts import Attempt
from coserve_server.workers.summing import Condition
from coserve_server.workers.worker import State
from tests.server.workers.fakes import Fake, run, whole


def test_every_worker_hears_of_the_others_faults() -> None:
    async def test(log: list[Any]) -> None:
        workers = [Fake(1, log), Fake(2, log), Fake(3, log, State.LEAVING)]
        workers[1].condition = Condition(["pair: 2 members are needed"])
        workers[2].condition = Condition(["gone"])
        whole(*workers).spread_faults()
        assert log == [(1, "elsewhere", ["worker 2: pair: 2 members are needed"]), (2, "elsewhere", [])]

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
