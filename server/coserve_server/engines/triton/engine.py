"""Sends each batch to every member at once, on one of the Triton servers."""

import asyncio
import itertools
import logging
import time
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.triton.channel import metadata, open_channel
from coserve_server.engines.triton.endpoint import NOT_LOADED, CallError, Endpoint
from coserve_server.engines.triton.shared_memory import Place, SharedMemory, SystemSharedMemory
from coserve_server.engines.triton.tensors import Outgoing, read_logits
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)


UNLOADED = "unloaded"
NO_HOST = "no Triton server has this ensemble any more; the next request meets what has replaced it"


class TritonEngine:
    """Runs the ensembles that Triton servers have loaded; looks again and again what these are.

    All members of a batch go to the same server. If it is lost, those that lack an answer go to another that
    describes the ensemble in the same way.
    """

    def __init__(self, settings: Settings) -> None:
        self._memory = _shared_memory(settings)
        self._endpoints = [
            Endpoint(address, open_channel(address, settings), metadata(settings), self._memory)
            for address in settings.triton_addresses
        ]
        self._refresh_s = settings.triton_refresh_ms / 1000
        self._ensembles: dict[str, Ensemble] = {}
        self._turn = itertools.count()
        self._watches: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(cls, settings: Settings) -> "TritonEngine":
        """Look once at every server; those that do not answer are looked at again later, like all others.

        Raises:
            SettingsError: the GPU's memory that images are to go through is not to be had.
        """
        engine = cls(settings)
        await asyncio.gather(*(engine._look(endpoint) for endpoint in engine._endpoints))
        engine._watches = [asyncio.create_task(engine._watch(endpoint)) for endpoint in engine._endpoints]
        return engine

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """What the servers have loaded, wholly or in part."""
        return self._ensembles

    def versions(self, name: str) -> Sequence[Ensemble]:
        """The newest version that Triton has loaded; ensembles are served as they are described now."""
        return (self._ensembles[name],) if name in self._ensembles else ()

    @property
    def load_errors(self) -> Mapping[str, str]:
        """What servers say of models that they could not load."""
        known = {m.name for ensemble in self._ensembles.values() for m in ensemble.members}
        errors: dict[str, list[str]] = {}
        for endpoint in self._endpoints:
            for name, reason in endpoint.missing.items():
                broken = endpoint.error is None and reason not in (UNLOADED, NOT_LOADED)
                if broken and name not in known | self._ensembles.keys():
                    errors.setdefault(name, []).append(f"{endpoint.address} has not loaded {name}: {reason}")
        return {name: "; ".join(said) for name, said in errors.items()}

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Members that some server which answers has loaded."""
        hosts = self._hosts(ensemble)
        return frozenset(m.name for m in ensemble.members if any(host.ready(m) for host in hosts))

    def faults(self) -> list[str]:
        """That no server has been reached, or the models that one could not load."""
        return list(self.load_errors.values()) if self._ensembles else [self._nothing()]

    def absence(self, name: str | None) -> str | None:
        """That no server has any ensemble, or that the one named is listed and not loaded."""
        if not self._ensembles:
            return self._nothing()
        lacking = [f"{one.address} has not loaded {name}" for one in self._endpoints if name in one.missing]
        return "; ".join([*lacking, *self.faults()]) if lacking else None

    def describe(self, ensemble: Ensemble) -> str:
        """The servers that have the ensemble."""
        return f"on Triton at {', '.join(host.address for host in self._hosts(ensemble))}"

    def batches(self, ensemble: Ensemble) -> bool:
        """Whether Triton batches the requests to every member."""
        return all(member.batches for member in ensemble.members)

    def resource(self, ensemble: Ensemble) -> Hashable:
        """The ensemble itself: Triton has its own queues."""
        return id(ensemble.whole), ensemble.name

    def lanes(self, ensemble: Ensemble) -> int:
        """All members, each a model with instances of its own."""
        return len(ensemble.members)

    def allocate(self, shape: tuple[int, ...]) -> Batch:
        """What NumPy gives."""
        return np.empty(shape, np.float32)

    def start(self, ensemble: Ensemble, batch: Batch) -> list[asyncio.Future[MemberRun]]:
        """Send the batch to every member."""
        hosts = self._hosts(ensemble)
        up = [host for host in hosts if host.error is None]
        first = next(self._turn) % len(up) if up else 0
        # Also those that do not answer: one may have come back since the last look.
        order = [*up[first:], *up[:first], *(host for host in hosts if host.error is not None)]
        place = self._memory.put(batch) if self._memory else None
        outgoing = Outgoing(batch, place)
        tasks = [asyncio.create_task(self._run(member, outgoing, order)) for member in ensemble.members]
        if self._memory and place:
            _free_after(tasks, self._memory, place)
        return list(tasks)

    async def close(self) -> None:
        """Stop looking, and close the connections."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints))
        if self._memory:
            self._memory.close()

    async def _run(self, member: Member, outgoing: Outgoing, order: Sequence[Endpoint]) -> MemberRun:
        start = time.perf_counter_ns()
        device, errors = "triton", []
        for endpoint in order:
            device = f"triton {endpoint.address}"
            try:
                response = await endpoint.infer(outgoing.request(member, endpoint.shares_memory))
                logits = read_logits(response, member.output_name)
                return MemberRun(start, time.perf_counter_ns(), device, logits)
            except CallError as error:
                errors.append(f"{endpoint.address}: {error}")
                if not error.elsewhere:
                    break
        message = "; ".join(errors) or NO_HOST
        logger.warning("member %s failed: %s", member.name, message)
        return MemberRun(start, time.perf_counter_ns(), device, None, message)

    def _hosts(self, ensemble: Ensemble) -> list[Endpoint]:
        whole = ensemble.whole
        return [one for one in self._endpoints if one.ensembles.get(whole.name) is whole]

    def _nothing(self) -> str:
        states = (f"{one.address}: {one.error or 'answers'}" for one in self._endpoints)
        return f"no Triton server has an ensemble ({'; '.join(states)})"

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self._look(endpoint)
            # A fault of ours must not blind the engine for good.
            except Exception:
                logger.exception("looking at %s failed", endpoint.address)

    async def _look(self, endpoint: Endpoint) -> None:
        await endpoint.look()
        self._merge()
        if endpoint.error is not None and any(other.error is None for other in self._endpoints):
            endpoint.drop_calls()

    def _merge(self) -> None:
        """Agree on one description of each ensemble; a server with another has no part in it.

        Equal descriptions become the same object, so that a request need not compare them.
        """
        merged: dict[str, Ensemble] = {}
        # The description of a server that answers wins over what a lost one had.
        for endpoint in sorted(self._endpoints, key=lambda one: one.error is not None):
            for name, ensemble in endpoint.ensembles.items():
                if name not in merged:
                    known = self._ensembles.get(name)
                    merged[name] = known if known is not None and known == ensemble else ensemble
                if merged[name] == ensemble:
                    endpoint.ensembles[name] = merged[name]
                elif endpoint.error is None and self._ensembles.get(name) is not merged[name]:
                    logger.warning("%s is left out of %s: it describes it otherwise", endpoint.address, name)
        self._ensembles = merged


def _shared_memory(settings: Settings) -> SharedMemory | None:
    size, gpu = settings.triton_shared_memory_mib * 2**20, settings.triton_shared_memory_gpu
    if gpu is None:
        return SystemSharedMemory(size) if size else None
    from coserve_server.engines.triton.cuda_shared_memory import CudaSharedMemory

    return CudaSharedMemory(size, gpu)


def _free_after(tasks: Sequence[asyncio.Task[MemberRun]], memory: SharedMemory, place: Place) -> None:
    """Free the place when the last task has ended."""
    running = len(tasks)

    def ended(_: asyncio.Task[MemberRun]) -> None:
        nonlocal running
        running -= 1
        if running == 0:
            memory.free(place)

    for task in tasks:
        task.add_done_callback(ended)
