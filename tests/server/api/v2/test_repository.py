"""Loading and unloading, apart from the catalogue; tests/integration has the calls of clients."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from coserve_server.api.v2.repository import load, unload


class SlowControl:
    """Takes until the test says so."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.done: list[tuple[str, str]] = []

    async def load(self, name: str) -> None:
        await self.may_end.wait()
        self.done.append(("load", name))

    async def unload(self, name: str) -> None:
        await self.may_end.wait()
        self.done.append(("unload", name))


@pytest.mark.parametrize("change", [load, unload])
def test_a_change_is_finished_although_its_client_is_gone(change: Callable[..., Awaitable[None]]) -> None:
    async def go() -> None:
        control = SlowControl()
        changing = asyncio.ensure_future(change(control, "pair", ()))
        await asyncio.sleep(0)
        changing.cancel()
        await asyncio.wait([changing])
        assert changing.cancelled()
        control.may_end.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert control.done == [(change.__name__, "pair")]

    asyncio.run(go())
