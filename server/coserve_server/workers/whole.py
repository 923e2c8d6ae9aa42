"""Answers what concerns all workers: sums, loading and unloading, faults."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from coserve_server.api.exposition import CONNECTIONS_REFUSED, MODEL_READY
from coserve_server.errors import ServerError
from coserve_server.workers.channel import GoneError
from coserve_server.workers.summing import Snapshot, add_up
from coserve_server.workers.worker import State, Worker


class Whole:
    """The workers as one server.

    Attributes:
        replacements: number of workers that were started in place of others.
    """

    def __init__(
        self, workers: Sequence[Worker], count: int, refused: Callable[[], int], *, polls: bool = True
    ) -> None:
        """Speak for the workers.

        Args:
            workers: those of any time; the caller adds and removes them.
            count: how many there should be.
            refused: returns the number of connections that none of them took.
            polls: whether each worker notices changes of files by itself.
        """
        self.replacements = 0
        self._workers = workers
        self._ended = Snapshot()
        self._unloaded: set[str] = set()
        self._polls = polls
        self._being_loaded: str | None = None
        self._missed: frozenset[tuple[Worker, str]] = frozenset()
        self._changing = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._loading: Worker | None = None
        self._registry = CollectorRegistry()
        self._registry.register(_Workers(self, count, refused))
        ProcessCollector(registry=self._registry)

    @property
    def unloaded(self) -> frozenset[str]:
        """Names of the ensembles that clients have unloaded."""
        return frozenset(self._unloaded)

    @property
    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """What a worker may call."""
        return {
            "total": self.total,
            "load_everywhere": self.load,
            "unload_everywhere": self.unload,
            "take_turn": self.take_turn,
            "end_turn": self.end_turn,
            "changed": self.spread_faults,
        }

    def ready(self) -> list[Worker]:
        """Return the workers that take connections."""
        return [worker for worker in self._workers if worker.state is State.READY]

    async def total(self, _: Worker) -> Snapshot:
        """Return what all workers have counted since the start, those included that have ended."""
        # Read first: a worker that ends meanwhile must not be counted twice.
        ended = self._ended
        snapshots = await asyncio.gather(*(worker.snapshot() for worker in self._workers))
        return add_up([Snapshot(list(self._registry.collect())), ended, *snapshots])

    def bury(self, worker: Worker) -> None:
        """Keep what counts of a worker that has ended and is no longer one of the workers."""
        self.end_turn(worker)
        self._ended = add_up([self._ended, worker.last_counts()])

    async def take_turn(self, worker: Worker) -> None:
        """Wait until no worker replaces an ensemble; each needs memory for a further copy."""
        await self._turn.acquire()
        self._loading = worker
        if worker.ended.done():
            self.end_turn(worker)

    def end_turn(self, worker: Worker) -> None:
        """Let the next worker replace an ensemble."""
        if self._loading is worker:
            self._loading = None
            self._turn.release()

    async def load(self, _: Worker, name: str) -> None:
        """Load an ensemble in one worker after another.

        Raises:
            ServerError: a worker could not; the others may have. An unloaded ensemble stays so in workers
                that are started later.
        """
        async with self._changing:
            self._being_loaded = name
            try:
                faults = [fault for fault in await self._call_all("load", name) if fault is not None]
            finally:
                self._being_loaded = None
                if not self._polls:
                    # Nobody is going to load what this call has not.
                    self.spread_faults()
            if faults:
                raise faults[0]
            self._unloaded.discard(name)
            # A worker that is starting was told to leave it unloaded.
            self._note_missed("load", name)

    async def unload(self, _: Worker, name: str) -> None:
        """Unload an ensemble in all workers.

        Raises:
            ServerError: no worker serves it.
        """
        async with self._changing:
            before = frozenset(self._unloaded)
            # First: a worker that is started meanwhile must not serve it.
            self._unloaded.add(name)
            self._note_missed("unload", name)
            faults = await self._call_all("unload", name)
            failed = [fault for fault in faults if fault is not None]
            if failed and len(failed) == len(faults):
                self._unloaded = set(before)
                # A worker that is starting must do as the others, which go on as before.
                self._note_missed("unload" if name in before else "load", name)
                raise failed[0]

    async def catch_up(self, worker: Worker) -> None:
        """Repeat in a new worker what was loaded and unloaded before it was ready, then let it serve.

        It waits for no other worker: a load that hangs there must not keep a replacement from serving.
        """
        while worker.missed:
            name, verb = worker.missed.popitem()
            await _call(worker, verb, name)
        worker.admit()
        await self._share(worker)

    def spread_faults(self) -> None:
        """Tell every worker why others cannot answer, since any of them may get the next request."""
        ready = self.ready()
        lacking = self.missing()
        self._missed = frozenset((worker, name) for worker, name, _ in lacking)
        missing = [
            f"worker {worker.number}: {name} is not served, but by other workers: {reason}"
            for worker, name, reason in lacking
        ]
        for worker in ready:
            others = [one for one in ready if one is not worker]
            faults = [f"worker {one.number}: {fault}" for one in others for fault in one.condition.faults]
            worker.channel.notify("elsewhere", [*faults, *missing])

    def missing(self) -> list[tuple[Worker, str, str]]:
        """Return the ensembles that a worker could not load although others serve them, and why.

        An ensemble that it is still going to load does not count, even if its earlier files were broken:
        workers load one after another. But what has once counted counts until it is loaded.
        """
        ready = self.ready()
        served = {name for worker in ready for name in worker.condition.served}
        return [
            (worker, name, reason)
            for worker in ready
            for name, reason in worker.condition.not_served.items()
            if name in served and ((worker, name) in self._missed or not self._is_behind(worker, name))
        ]

    def _is_behind(self, worker: Worker, name: str) -> bool:
        """Return whether a worker is going to load files with which another serves the ensemble already."""
        own = worker.condition.attempts.get(name)
        if own is None or not (self._polls or self._being_loaded == name):
            return False
        serving = (one.condition for one in self.ready() if name in one.condition.served)
        others = (condition.attempts.get(name) for condition in serving)
        return any(other is not None and own.is_outdated_by(other) for other in others)

    def _note_missed(self, verb: str, name: str) -> None:
        """Note what workers have to do once they have started."""
        for worker in self._workers:
            if worker.state is State.STARTING:
                worker.missed[name] = verb

    async def _share(self, newcomer: Worker) -> None:
        """Let others' connections end until a new worker can have its part; kept alive, they would stay."""
        ready = self.ready()
        counts = await asyncio.gather(*(worker.count_connections() for worker in ready))
        part = sum(counts) // max(len(ready), 1)
        for worker, count in zip(ready, counts, strict=True):
            if worker is not newcomer and count > part:
                worker.channel.notify("shed", count - part)

    async def _call_all(self, name: str, model: str) -> list[ServerError | None]:
        """Call one worker after another, also those that become ready meanwhile."""
        answers: dict[Worker, ServerError | None] = {}
        while running := [
            one for one in self._workers if one.state is not State.STARTING and one not in answers
        ]:
            for worker in running:
                answers[worker] = await _call(worker, name, model)
        return list(answers.values())


async def _call(worker: Worker, name: str, model: str) -> ServerError | None:
    """Call a worker; return the error that it raises. One that has ended needs nothing any more."""
    try:
        await worker.channel.call(name, model)
    except GoneError:
        return None
    except ServerError as error:
        return error
    return None


class _Workers(Collector):
    """Reports how many workers there are, connections that none took, and ensembles that some lack."""

    def __init__(self, whole: Whole, count: int, refused: Callable[[], int]) -> None:
        self._whole = whole
        self._count = count
        self._refused = refused

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("coserve_workers", "The setting workers, or its default.", self._count)
        text = "Workers that take connections; the others are being replaced."
        yield GaugeMetricFamily("coserve_workers_ready", text, len(self._whole.ready()))
        text = "Workers started in place of others that had ended."
        yield CounterMetricFamily("coserve_worker_replacements", text, self._whole.replacements)
        closed = CounterMetricFamily("coserve_connections_refused", CONNECTIONS_REFUSED, labels=["reason"])
        closed.add_metric(["overloaded"], self._refused())
        yield closed
        # Only the workers that serve an ensemble report it; of several values, the lowest counts.
        missing = {name for _, name, _ in self._whole.missing()}
        models = {
            (name, version)
            for worker in self._whole.ready()
            for name in missing
            for version in worker.condition.served.get(name, ())
        }
        ready = GaugeMetricFamily("coserve_model_ready", MODEL_READY, labels=("model", "version"))
        for model in models:
            ready.add_metric(model, 0)
        yield ready
