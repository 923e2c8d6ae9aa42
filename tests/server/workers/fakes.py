"""Workers without processes, and what speaks for them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

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
