"""The Triton servers behind the names in the settings: they come and go with the names' addresses."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from coserve_server.engines.triton.channel import call_metadata, open_channel
from coserve_server.engines.triton.endpoint import LOOK_TIMEOUT_S, Endpoint
from coserve_server.engines.triton.names import RESOLVE_S, UnknownNameError, find_addresses
from coserve_server.engines.triton.shared_memory import SharedMemory
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)


class Servers:
    """Connects to every address of every name, and polls each server on its own.

    Attributes:
        endpoints: the servers to send requests to, in the order of the settings.
        leaving: servers whose address has left its name: only for requests that nobody else can answer.
        unknown: why names could not be looked up the last time, by name.
    """

    def __init__(
        self, settings: Settings, memory: SharedMemory | None, poll: Callable[[Endpoint], Awaitable[None]]
    ) -> None:
        """Take the names from the settings.

        Args:
            poll: called again and again for every server.
        """
        self.endpoints: Sequence[Endpoint] = ()
        self.leaving: list[Endpoint] = []
        self.unknown: dict[str, str] = {}
        self._settings = settings
        self._memory = memory
        self._poll = poll
        self._by_name: dict[str, dict[str, Endpoint]] = {name: {} for name in settings.triton_addresses}
        self._watches: dict[Endpoint, asyncio.Task[None]] = {}
        self._polled: dict[Endpoint, asyncio.Event] = {}
        self._followers: list[asyncio.Task[None]] = []
        self._farewells: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Look every name up and poll every server once, within limits; then go on with both."""
        looking = [asyncio.create_task(self._look_up(name)) for name in self._by_name]
        await asyncio.wait(looking, timeout=LOOK_TIMEOUT_S)
        await asyncio.gather(*(self._polled[endpoint].wait() for endpoint in self.endpoints))
        self._followers = [
            asyncio.create_task(self._follow(name, first))
            for name, first in zip(self._by_name, looking, strict=True)
        ]

    async def close(self) -> None:
        """Stop polling, and close the connections."""
        tasks = [*self._followers, *self._watches.values(), *self._farewells]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(endpoint.close() for endpoint in (*self.endpoints, *self.leaving)))

    async def _follow(self, name: str, first: asyncio.Task[None]) -> None:
        await first
        while True:
            await asyncio.sleep(RESOLVE_S)
            await self._look_up(name)

    async def _look_up(self, name: str) -> None:
        """Take the servers that a name stands for now; keep those of before if it cannot be looked up."""
        try:
            addresses = await find_addresses(name)
        except UnknownNameError as error:
            if name not in self.unknown:
                logger.warning("%s: %s", name, error)
            self.unknown[name] = str(error)
            return
        self.unknown.pop(name, None)
        known = self._by_name[name]
        self._by_name[name] = {one: known.get(one) or self._join(one, name) for one in addresses}
        self.endpoints = [one for group in self._by_name.values() for one in group.values()]
        for address, endpoint in known.items():
            if address not in addresses:
                self._retire(endpoint)

    def _join(self, address: str, name: str) -> Endpoint:
        label = address if address == name else f"{address} ({name})"
        logger.debug("%s: connecting", label)
        channel = open_channel(address, name, self._settings)
        endpoint = Endpoint(label, channel, call_metadata(self._settings), self._memory)
        self._polled[endpoint] = asyncio.Event()
        self._watches[endpoint] = asyncio.create_task(self._watch(endpoint))
        return endpoint

    def _retire(self, endpoint: Endpoint) -> None:
        logger.info("%s: its address has gone", endpoint.address)
        self._watches.pop(endpoint).cancel()
        del self._polled[endpoint]
        self.leaving.append(endpoint)
        farewell = asyncio.create_task(self._leave(endpoint))
        self._farewells.add(farewell)
        farewell.add_done_callback(self._farewells.discard)

    async def _leave(self, endpoint: Endpoint) -> None:
        """Close the connection once every request that began with it has ended."""
        await asyncio.sleep(self._settings.deadline_ms / 1000)
        self.leaving.remove(endpoint)
        await endpoint.close()

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await self._poll(endpoint)
            self._polled[endpoint].set()
            await asyncio.sleep(self._settings.triton_refresh_ms / 1000)
