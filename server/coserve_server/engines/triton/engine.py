"""Runs members on Triton servers: sends each batch to all members at once."""

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from coserve_server.engines.base import Batch, Images, as_array
from coserve_server.engines.triton.endpoint import NOT_LOADED, CallError, Endpoint
from coserve_server.engines.triton.servers import Servers
from coserve_server.engines.triton.shared_memory import SharedMemory, Slot
from coserve_server.engines.triton.tensors import MemberRequests, read_logits
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.observability.record import Record, join_ids
from coserve_server.outcomes import Failure, MemberRun, Place
from coserve_server.security.tls import check_triton_files
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)

UNLOADED = "unloaded"
NO_HOST = "no Triton server has this ensemble any more; the next request uses its replacement"


class TritonEngine:
    """Runs the ensembles that Triton servers have loaded, and polls the servers for changes.

    All members of a batch go to the same server. If it is lost, members without an answer go to another
    server that describes the ensemble in the same way.
    """

    def __init__(self, settings: Settings) -> None:
        size = settings.triton_shared_memory_mib * 2**20
        self._memory = SharedMemory(size) if size else None
        self._servers = Servers(settings, self._memory, self._refresh)
        self._ensembles: dict[str, Ensemble] = {}
        self._turn = itertools.count()

    @classmethod
    async def connect(cls, settings: Settings) -> "TritonEngine":
        """Poll every server once, and keep polling.

        Servers that do not answer yet are not an error, nor are names without an address.

        Raises:
            SettingsError: the shared memory cannot be allocated.
            TlsError: a certificate or its key cannot be used.
        """
        if settings.triton_tls:
            check_triton_files(settings)
        engine = cls(settings)
        await engine._servers.start()
        return engine

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """The ensembles that servers have loaded, wholly or in part."""
        return self._ensembles

    def versions(self, name: str) -> Sequence[Ensemble]:
        """Return the newest version that Triton has loaded, as it is described now."""
        return (self._ensembles[name],) if name in self._ensembles else ()

    @property
    def load_errors(self) -> Mapping[str, str]:
        """What servers say about models that they could not load, and what is wrong with ensembles there."""
        known = {m.name for ensemble in self._ensembles.values() for m in ensemble.members}
        errors: dict[str, list[str]] = {}
        for endpoint in self._endpoints:
            if endpoint.error is not None:
                continue
            failed = {
                name: f"{endpoint.address} has not loaded {name}: {reason}"
                for name, reason in endpoint.missing.items()
                if reason not in (UNLOADED, NOT_LOADED)
            }
            for name, text in {**failed, **endpoint.refused}.items():
                if name not in known | self._ensembles.keys():
                    errors.setdefault(name, []).append(text)
        return {name: "; ".join(said) for name, said in errors.items()}

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Return the members that some answering server has loaded."""
        hosts = self._hosts(ensemble)
        return frozenset(m.name for m in ensemble.members if any(host.ready(m) for host in hosts))

    def faults(self) -> list[str]:
        """Return why no server has an ensemble; one model that cannot be loaded does not count."""
        return [] if self._ensembles else [self._nothing()]

    def why_missing(self, name: str | None) -> str | None:
        """Return why no server has an ensemble, or else which servers list this one but cannot serve it."""
        if not self._ensembles:
            return self._nothing()
        errors = self.load_errors
        lacking = [f"{one.address} has not loaded {name}" for one in self._endpoints if name in one.missing]
        if lacking:
            return "; ".join([*lacking, *errors.values()])
        return None if name is None else errors.get(name)

    def describe(self, ensemble: Ensemble) -> str:
        """Return the servers that have the ensemble."""
        return f"on Triton at {', '.join(host.address for host in self._hosts(ensemble))}"

    def batches(self, ensemble: Ensemble) -> bool:
        """Return whether Triton batches the requests to every member."""
        return all(member.batches for member in ensemble.members)

    def places(self, ensemble: Ensemble) -> list[Place]:
        """Return a place of the ensemble's own: Triton has queues per model, which its instances share."""
        return [Place(cores=frozenset({(id(ensemble.whole), ensemble.name)}))]

    def lanes(self, ensemble: Ensemble) -> int:
        """Return the number of members: each is a model with instances of its own."""
        return len(ensemble.members)

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> list[asyncio.Future[MemberRun]]:
        """Send the batch to every member.

        Triton's spans join the trace of the batch's first request: a call has one parent.
        """
        tensor = as_array(images)
        hosts = self._hosts(ensemble)
        up = [host for host in hosts if host.error is None]
        first = next(self._turn) % len(up) if up else 0
        # Lost servers too: one may have come back since the last poll.
        lost = [host for host in hosts if host.error is not None]
        order = [*up[first:], *up[:first], *lost, *self._choose(self._servers.leaving, ensemble)]
        slot = self._memory.put(tensor) if self._memory else None
        requests = MemberRequests(tensor, slot)
        tasks = [
            asyncio.create_task(self._run(member, requests, order, records)) for member in ensemble.members
        ]
        if self._memory and slot:
            _free_after(tasks, self._memory, slot)
        return list(tasks)

    async def close(self) -> None:
        """Stop polling, close the connections, and free the shared memory."""
        await self._servers.close()
        if self._memory:
            self._memory.close()

    async def _run(
        self, member: Member, requests: MemberRequests, order: Sequence[Endpoint], records: Sequence[Record]
    ) -> MemberRun:
        start = time.perf_counter_ns()
        device = "triton"
        errors = []
        traceparent = records[0].traceparent if records else None
        for endpoint in order:
            device = f"triton {endpoint.address}"
            try:
                request = requests.request(member, endpoint.shares_memory)
                response = await endpoint.infer(request, traceparent)
                logits = read_logits(response, member.output_name)
                return MemberRun(member.name, device, start, time.perf_counter_ns(), logits)
            except CallError as error:
                errors.append(f"{endpoint.address}: {error}")
                if not error.elsewhere:
                    break
        message = "; ".join(errors) or NO_HOST
        request_ids = join_ids(records)
        extra = {"request_id": request_ids} if request_ids else None
        logger.warning("member %s failed: %s", member.name, message, extra=extra)
        failure = Failure("failed", message)
        return MemberRun(member.name, device, start, time.perf_counter_ns(), None, failure)

    @property
    def _endpoints(self) -> Sequence[Endpoint]:
        return self._servers.endpoints

    def _hosts(self, ensemble: Ensemble) -> list[Endpoint]:
        return self._choose(self._endpoints, ensemble)

    @staticmethod
    def _choose(endpoints: Iterable[Endpoint], ensemble: Ensemble) -> list[Endpoint]:
        """Return the servers that describe the ensemble as the request's."""
        whole = ensemble.whole
        return [one for one in endpoints if one.ensembles.get(whole.name) is whole]

    def _nothing(self) -> str:
        states = [f"{name}: {reason}" for name, reason in self._servers.unknown.items()]
        states += [f"{one.address}: {one.error or 'answers'}" for one in self._endpoints]
        nothing = f"no Triton server has an ensemble ({'; '.join(states)})"
        return "; ".join([nothing, *self.load_errors.values()])

    async def _refresh(self, endpoint: Endpoint) -> None:
        try:
            await endpoint.refresh()
            self._merge()
        # A bug, or what a server says, must neither stop the polling nor prevent the start.
        except Exception:
            logger.exception("polling %s failed", endpoint.address)
        if endpoint.error is not None and any(other.error is None for other in self._endpoints):
            endpoint.drop_calls()

    def _merge(self) -> None:
        """Agree on one description of each ensemble, and leave out servers with another.

        Equal descriptions become one object, so that requests need not compare them.
        """
        merged = {name: self._elect(name) for one in self._endpoints for name in one.ensembles}
        for endpoint in self._endpoints:
            for name, ensemble in endpoint.ensembles.items():
                if merged[name] == ensemble:
                    endpoint.ensembles[name] = merged[name]
                elif endpoint.error is None and self._ensembles.get(name) is not merged[name]:
                    logger.warning(
                        "%s: %s is left out, since it describes the ensemble differently",
                        name,
                        endpoint.address,
                    )
        self._ensembles = merged

    def _elect(self, name: str) -> Ensemble:
        """Choose the description that most answering servers give; among equals the newest, then today's."""
        up = [one for one in self._endpoints if one.error is None and name in one.ensembles]
        given = [one.ensembles[name] for one in up or self._endpoints if name in one.ensembles]
        known = self._ensembles.get(name)
        best = max(given, key=lambda one: (given.count(one), int(one.version), one == known))
        return known if known is not None and known == best else best


def _free_after(tasks: Sequence[asyncio.Task[MemberRun]], memory: SharedMemory, slot: Slot) -> None:
    """Free the slot when the last task has ended."""
    running = len(tasks)

    def ended(_: asyncio.Task[MemberRun]) -> None:
        nonlocal running
        running -= 1
        if running == 0:
            memory.free(slot)

    for task in tasks:
        task.add_done_callback(ended)
