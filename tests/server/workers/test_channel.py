import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coserve_server.errors import RepositoryError, ServerError
from coserve_server.workers.channel import Channel, GoneError


@asynccontextmanager
async def connected(handlers: dict[str, Callable[..., Any]]) -> AsyncIterator[tuple[Channel, Channel]]:
    ends = socket.socketpair()
    here = Channel(ends[0], {"double": lambda number: 2 * number})
    there = Channel(ends[1], handlers)
    await asyncio.gather(here.open(), there.open())
    tasks = [asyncio.ensure_future(one.run()) for one in (here, there)]
    try:
        yield here, there
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def run(test: Callable[[Channel, Channel], Awaitable[None]], **handlers: Callable[..., Any]) -> None:
    async def main() -> None:
        async with connected(handlers) as channels:
            await asyncio.wait_for(test(*channels), 60)

    asyncio.run(main())


def test_calls_in_both_directions_wait_for_each_other() -> None:
    async def test(here: Channel, there: Channel) -> None:
        async def through(number: int) -> int:
            return 1 + int(await there.call("double", number))

        there._handlers = {"through": through}
        assert await asyncio.gather(*(here.call("through", number) for number in range(3))) == [1, 3, 5]

    run(test)


def test_large_results_arrive() -> None:
    async def test(here: Channel, _: Channel) -> None:
        assert await here.call("large") == b"x" * 2**22

    run(test, large=lambda: b"x" * 2**22)


def test_errors_for_users_arrive_as_they_are() -> None:
    def fail() -> None:
        raise RepositoryError("the folder is empty")

    def break_down() -> None:
        raise ZeroDivisionError("secret")

    async def test(here: Channel, _: Channel) -> None:
        with pytest.raises(RepositoryError, match=r"^the folder is empty$"):
            await here.call("fail")
        with pytest.raises(ServerError, match=r"^break_down failed: ZeroDivisionError$"):
            await here.call("break_down")

    run(test, fail=fail, break_down=break_down)


def test_a_process_that_ends_answers_every_call() -> None:
    async def test(here: Channel, there: Channel) -> None:
        calls = [asyncio.ensure_future(here.call("wait")) for _ in range(2)]
        await asyncio.sleep(0)
        assert there._writer is not None
        there._writer.close()
        for call in calls:
            with pytest.raises(GoneError):
                await call
        with pytest.raises(GoneError):
            await here.call("wait")
        here.notify("wait")

    run(test, wait=asyncio.Event().wait)
