import asyncio
import itertools
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from coserve_server.errors import StartupError
from coserve_server.machine.cores import Cores
from coserve_server.machine.plan import Slice
from coserve_server.settings import load_settings
from coserve_server.workers import supervisor
from coserve_server.workers.launch import Assignment
from coserve_server.workers.supervisor import MAX_FAILED_STARTS, supervise
from coserve_server.workers.worker import State
from tests.server.workers.test_whole import Fake


class Worker(Fake):
    """A worker of which only the first two start."""

    made: list["Worker"]
    sound = 2
    fault: Exception = StartupError("the repository is broken")

    def __init__(self, assignment: Assignment, handlers: Mapping[str, Any]) -> None:
        super().__init__(assignment.number, [], State.STARTING)
        self.assignment = assignment
        self.handlers = handlers
        self.left = asyncio.Event()
        self.summary = "Coserve\n  try: curl"
        self.made.append(self)

    async def start(self) -> None:
        if len(self.made) > self.sound:
            raise self.fault

    def notify(self, name: str, argument: object = None) -> None:
        super().notify(name, argument)
        if name == "stop":
            self.end(0)

    def drain(self) -> None:
        self.notify("drain")

    def stop(self) -> None:
        self.notify("stop")

    def end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)
            self.left.set()

    def kill(self) -> None:
        self.end(-9)

    def describe_end(self) -> str:
        return "was ended"

    def reclaim(self) -> list[socket.socket]:
        return []

    async def close(self) -> None:
        await self.ended


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    monkeypatch.setattr(Worker, "made", [], raising=False)
    monkeypatch.setattr(supervisor, "Worker", Worker)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.001)
    return Worker.made


SETTINGS = load_settings(repository="unused", port=0)
SLICES = [Slice(Cores(1, None), None)] * 2


def run(made: list[Worker], *, unload: str | None = None) -> list[str]:
    """Serve until the end; the first worker ends once all have started. Return what was announced.

    Args:
        unload: what a client unloads before.
    """
    announced = []

    def announce(text: str) -> None:
        announced.append(text)
        first, second = made
        if unload is None:
            first.end(-9)
        else:
            unloading = asyncio.ensure_future(second.handlers["unload_everywhere"](second, unload))
            unloading.add_done_callback(lambda _: first.end(-9))

    async def serve() -> None:
        await supervise(SETTINGS, SLICES, announce)

    asyncio.run(asyncio.wait_for(serve(), 60))
    return announced


def test_replacements_that_fail_again_and_again_end_the_server(made: list[Worker]) -> None:
    fault = rf"^{MAX_FAILED_STARTS} replacements of a worker failed; the repository is broken$"
    with pytest.raises(StartupError, match=fault):
        run(made)
    assert [one.number for one in made] == [1, 2, *[1] * MAX_FAILED_STARTS]
    # The other has ended its requests before.
    assert [name for _, name, _ in made[1].log if name in ("drain", "stop")] == ["drain", "stop"]


def test_a_start_that_fails_is_the_servers(made: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "sound", 1)
    with pytest.raises(StartupError, match=r"^the repository is broken$"):
        run(made)
    assert all(one.ended.done() for one in made)


def test_a_replacement_does_not_load_what_was_unloaded(made: list[Worker]) -> None:
    with pytest.raises(StartupError):
        run(made, unload="pair")
    assert [one.assignment.unloaded for one in made[1:3]] == [frozenset(), {"pair"}]


def test_a_bug_that_keeps_workers_from_being_replaced_ends_the_server(
    made: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "fault", ZeroDivisionError())
    with pytest.raises(StartupError, match=r"^workers cannot be replaced any more; the log says why$"):
        run(made)
    assert all(one.ended.done() for one in made)


def test_a_worker_that_starts_while_the_server_stops_is_not_ready_either(made: list[Worker]) -> None:
    async def main() -> None:
        assignment = Assignment(1, {}, SLICES[0], "", None)
        with socket.socket() as listener:
            keeper = supervisor._Supervisor(SETTINGS, [assignment] * 2, listener)
            await keeper._start(assignment)
            keeper._stop(3600)
            await asyncio.sleep(0)
            late = await keeper._start(assignment)
            assert keeper._stopping is not None
            keeper._stopping.cancel()
        assert late.state is State.READY

    asyncio.run(main())
    assert [[name for _, name, _ in one.log if name == "drain"] for one in made] == [["drain"]] * 2


def test_a_replacement_that_ends_with_the_server_is_no_error(
    made: list[Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(self: Worker) -> None:
        if len(made) > self.sound:
            serving.cancel()
            await self.ended
            raise self.fault

    async def main() -> None:
        nonlocal serving
        serving = asyncio.ensure_future(supervise(SETTINGS, SLICES, lambda _: made[0].end(-9)))
        with pytest.raises(asyncio.CancelledError):
            await serving

    serving: asyncio.Future[None]
    monkeypatch.setattr(Worker, "start", start)
    asyncio.run(main())
    assert caplog.messages == ["worker 1 was ended; a new one takes its place"]


def test_a_start_that_hangs_is_named_in_the_log_ever_more_rarely(
    made: list[Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(_: Worker) -> None:
        while len(caplog.records) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def main() -> None:
        assignment = Assignment(2, {}, SLICES[0], "", None)
        before = asyncio.all_tasks()
        with socket.socket() as listener:
            await supervisor._Supervisor(SETTINGS, [assignment], listener)._start(assignment)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before, "nothing warns of a worker that has started"

    monkeypatch.setattr(supervisor, "SLOW_START_S", 0.01)
    monkeypatch.setattr(Worker, "start", start)
    asyncio.run(asyncio.wait_for(main(), 60))
    assert all(text.startswith("worker 2 has been starting for 0 s") for text in caplog.messages)
    waited = [record.args[1] for record in caplog.records if isinstance(record.args, tuple)]
    assert all(later >= 1.99 * earlier for earlier, later in itertools.pairwise(waited))
