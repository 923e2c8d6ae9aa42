import asyncio
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
from tests.server.workers.test_whole import Fake


class Worker(Fake):
    """A worker of which only the first two start."""

    made: list["Worker"]
    sound = 2

    def __init__(self, assignment: Assignment, _: Mapping[str, Any]) -> None:
        super().__init__(assignment.number, [])
        self.left = asyncio.Event()
        self.summary = "Coserve\n  try: curl"
        self.made.append(self)

    async def start(self) -> None:
        if len(self.made) > self.sound:
            raise StartupError("the repository is broken")

    def notify(self, name: str, argument: object = None) -> None:
        super().notify(name, argument)
        if name == "stop":
            self.end(0)

    def end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)
            self.left.set()

    def kill(self) -> None:
        self.end(-9)

    def describe_end(self) -> str:
        return "was ended"

    async def close(self) -> None:
        await self.ended


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    monkeypatch.setattr(Worker, "made", [], raising=False)
    monkeypatch.setattr(supervisor, "Worker", Worker)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.001)
    return Worker.made


SLICES = [Slice(Cores(1, None), None)] * 2


def run(made: list[Worker]) -> list[str]:
    """Serve until the end; the first worker ends once all have started. Return what was announced."""
    announced = []

    def announce(text: str) -> None:
        announced.append(text)
        made[0].end(-9)

    async def serve() -> None:
        await supervise(load_settings(repository="unused", port=0), SLICES, announce)

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
