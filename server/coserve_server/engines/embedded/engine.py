"""An engine in this process: the versions of each ensemble that are loaded, and the cores they run on."""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf

from coserve_server.engines.base import Batch, Images
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.embedded.loaded_ensemble import LoadedEnsemble
from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.engines.embedded.members import Load, LoadedMember
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import check_unchanged
from coserve_server.errors import EngineError, StartupError, first_line
from coserve_server.machine.cores import Cores
from coserve_server.machine.memory import available_bytes, trim_memory
from coserve_server.machine.threads import call_on_thread
from coserve_server.observability.record import Record, join_ids
from coserve_server.outcomes import MemberRun, Place

NOTHING = "no ensemble is loaded"
COLLECT_S = 60


class EmbeddedEngine:
    """Runs members on threads of this process.

    Where an ensemble's members leave cores free, it has copies, which run batches side by side; see
    `limit_copies`.

    Attributes:
        load_errors: always empty; `replace` raises what goes wrong.
    """

    load_errors: Mapping[str, str] = {}

    def __init__(
        self,
        load: Load,
        options: EngineOptions,
        cores: Cores,
        ensembles: Mapping[str, Ensemble],
    ) -> None:
        """Load and warm every member.

        Args:
            load: loads one member with the engine's library.

        Raises:
            EngineError: a member cannot be loaded, or does not fit its ensemble.
        """
        self._load_member = load
        self._options = options
        self._cores = cores if options.pinned else replace(cores, ids=None)
        self._max_copies = inf
        self._loaded: dict[int, LoadedEnsemble] = {}
        """By identity of the ensemble, including old versions that only requests in progress still hold."""
        self._versions: dict[str, tuple[Ensemble, ...]] = {}
        self._newest: dict[str, Ensemble] = {}
        for name, ensemble in ensembles.items():
            ensemble = self._limited(ensemble)
            self._loaded[id(ensemble)] = self._load_one(ensemble)
            self._serve(name, (ensemble,))

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """The newest version of each ensemble, by name."""
        return self._newest

    def versions(self, name: str) -> Sequence[Ensemble]:
        """Return the served versions of an ensemble, newest last."""
        return self._versions.get(name, ())

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Return the loaded members whose thread is not stuck; none after `close`."""
        if id(ensemble.whole) not in self._loaded:
            return frozenset()
        members = (one for copy in self._copies(ensemble) for one in copy)
        return frozenset(one.member.name for one in members if not one.lane.stuck)

    def faults(self) -> list[str]:
        """Return why the engine cannot serve. A failed reload is not a fault while the old version runs."""
        return [] if self._newest else [NOTHING]

    def why_missing(self, name: str | None) -> str | None:
        """Return why there is no ensemble at all; None for a name: an ensemble not loaded does not exist."""
        return NOTHING if name is None and not self._newest else None

    def describe(self, ensemble: Ensemble) -> str:
        """Return the ensemble's thread budget and the devices of its lanes."""
        loaded = self._loaded[id(ensemble.whole)]
        lanes = loaded.lanes
        threads = lanes[0].threads
        devices = ", ".join(lane.device for lane in lanes)
        share = f"{len(lanes)} at a time, {threads} thread{'s' * (threads > 1)} each on {devices}"
        copies = f"{len(loaded.copies)} copies, " if len(loaded.copies) > 1 else ""
        return f"{copies}{share} ({self._cores.count} cores usable)"

    def batches(self, ensemble: Ensemble) -> bool:
        """Return False: this engine does not batch by itself."""
        return False

    def places(self, ensemble: Ensemble) -> list[Place]:
        """Return the copies with the fewest stuck lanes, those with least to do first."""
        loaded = self._loaded[id(ensemble.whole)]
        loads = [_load(copy) for copy in loaded.copies]
        fewest, _ = min(loads)
        ranked = sorted(zip(loads, loaded.places, strict=True), key=lambda pair: pair[0])
        return [place for (stuck, _), place in ranked if stuck == fewest]

    def lanes(self, ensemble: Ensemble) -> int:
        """Return how many members of a copy run at once."""
        loaded = self._loaded[id(ensemble.whole)]
        return min(len(ensemble.members), len(loaded.lanes) // len(loaded.copies))

    def start(
        self, ensemble: Ensemble, images: Images | Batch, records: Sequence[Record] = (), copy: int = 0
    ) -> list[asyncio.Future[MemberRun]]:
        """Hand the batch to every member's lane that is not stuck."""
        request_ids = join_ids(records)
        members = self._copies(ensemble)[copy]
        # Do nothing else between the submissions, so that the members start together.
        return [member.start(images, request_ids) for member in members]

    async def replace(self, name: str, ensembles: Sequence[Ensemble]) -> bool:
        """Serve these versions of an ensemble, newest last, instead of the present ones; none to stop.

        New versions are loaded and warmed on a thread while the old ones serve, then take over at once.
        Requests keep the version they began with; it is freed when the last of them has its answer.

        Returns:
            whether anything changed.

        Raises:
            EngineError, RepositoryError: a member cannot be loaded; what was served still is.
        """
        served = self.versions(name)
        new = self.unserved(name, ensembles)
        known = [*served, *new]
        wanted = [next(old for old in known if old == self._limited(one)) for one in ensembles]
        # It may hang, with the file system.
        loaded = await call_on_thread(partial(self._load_all, new), "loading")
        self._loaded.update(zip(map(id, new), loaded, strict=True))
        self._serve(name, tuple(wanted))
        gone = [old for old in served if not any(old is one for one in wanted)]
        loop = asyncio.get_running_loop()
        for old in gone:
            weakref.finalize(old, self._free_later, id(old), loop).atexit = False
            loop.call_later(COLLECT_S, _collect, weakref.ref(old), loop)
        return bool(new or gone)

    def unserved(self, name: str, ensembles: Sequence[Ensemble]) -> list[Ensemble]:
        """Return the versions that `replace` would load.

        Descriptions include the files' times and sizes, so equal ones need no loading.
        """
        served = self.versions(name)
        return [one for one in map(self._limited, ensembles) if one not in served]

    def planned_copies(self, ensemble: Ensemble) -> int:
        """Return how many copies of an ensemble are loaded."""
        return self._budget(ensemble).copies

    def limit_copies(self, ensembles: Iterable[Ensemble]) -> None:
        """Load no more copies than this process's part of memory has room for.

        Args:
            ensembles: all that are going to be loaded; there must be room for a new version of one, too.
        """
        sizes = [loading_bytes(ensemble) for ensemble in ensembles]
        if sizes:
            available = available_bytes() / self._options.processes
            self._max_copies = max(1, (available - max(sizes)) // sum(sizes)) if available < inf else inf

    async def close(self) -> None:
        """End the threads and free the members; running batches are stopped."""
        while self._loaded:
            _, loaded = self._loaded.popitem()
            await asyncio.to_thread(loaded.close)

    def _copies(self, ensemble: Ensemble) -> list[list[LoadedMember]]:
        """Return the members, which may be some of the loaded ones, of each copy."""
        copies = self._loaded[id(ensemble.whole)].copies
        if ensemble.part_of is None:
            return copies
        return [[one for one in copy if one.member in ensemble.members] for copy in copies]

    def _limited(self, ensemble: Ensemble) -> Ensemble:
        limit = self._options.max_batch_size
        if limit is None or ensemble.max_batch_size <= limit:
            return ensemble
        return replace(ensemble, max_batch_size=limit)

    def _serve(self, name: str, versions: tuple[Ensemble, ...]) -> None:
        served = {**self._versions, name: versions}
        self._versions = {one: served[one] for one in sorted(served) if served[one]}
        self._newest = {one: versions[-1] for one, versions in self._versions.items()}

    def _load_one(self, ensemble: Ensemble) -> LoadedEnsemble:
        try:
            lanes = self._new_lanes(ensemble)
            return LoadedEnsemble(ensemble, self._load_member, lanes, self.planned_copies(ensemble))
        except StartupError:
            raise
        # The system is out of threads, memory or open files, or a library has a bug.
        except Exception as error:
            raise EngineError(f"ensemble {ensemble.name} cannot be loaded: {first_line(error)}") from error

    def _new_lanes(self, ensemble: Ensemble) -> list[Lane]:
        """Make the lanes that the members share in turn, each with its share of the cores."""
        budget = self._budget(ensemble)
        cores = self._cores.enough_for(len(ensemble.members))
        placed = cores.place(budget.lanes * budget.copies, budget.threads, self._used(ensemble.name))
        pinned = cores.ids is not None and self._pins(budget)
        # With members on its second hyper-thread, no core is free for another ensemble.
        shared = None if cores is self._cores else self._cores.numbers
        lanes = [
            Lane(f"{ensemble.name}-{i}", own if pinned else None, budget.threads, cores=shared or own)
            for i, own in enumerate(placed)
        ]
        pins = [lane.pin for lane in lanes if lane.pin and lane.threads == 1]
        # A lane that moved would leave its library's own threads behind.
        for pin in pins:
            pin.beside = [one for one in pins if one is not pin]
        return lanes

    def _used(self, name: str) -> Counter[int]:
        """Return how many lanes of other ensembles each core has, by its number."""
        others = [one for other, versions in self._versions.items() if other != name for one in versions]
        loaded = [self._loaded[id(one)] for one in others]
        return Counter(core for one in loaded for lane in one.lanes for core in lane.cores)

    def _budget(self, ensemble: Ensemble) -> ThreadBudget:
        members = len(ensemble.members)
        budget = ThreadBudget.share(members, self._cores.enough_for(members).nodes, self._options.threads)
        return replace(budget, copies=int(min(budget.copies, self._max_copies)))

    def _pins(self, budget: ThreadBudget) -> bool:
        """Return whether the library's threads stay on the cores of the lane that loads a member."""
        return True

    def _load_all(self, ensembles: Sequence[Ensemble]) -> list[LoadedEnsemble]:
        """Load all of them; after an error, none stays loaded."""
        loaded: list[LoadedEnsemble] = []
        try:
            for ensemble in ensembles:
                loaded.append(self._load_one(ensemble))
                check_unchanged(ensemble)
        except BaseException:
            for one in loaded:
                one.close()
            raise
        return loaded

    def _free_later(self, key: int, loop: asyncio.AbstractEventLoop) -> None:
        """Free an ensemble that no request can reach; called on the thread that dropped it last."""
        loaded = self._loaded.pop(key, None)
        if loaded is not None and not loop.is_closed():
            loop.call_soon_threadsafe(loop.run_in_executor, None, _free, loaded)


def _load(members: Sequence[LoadedMember]) -> tuple[int, int]:
    """Return how many of the members' lanes are stuck, and how many runs they have."""
    return sum(one.lane.stuck for one in members), sum(one.lane.runs for one in members)


def _free(loaded: LoadedEnsemble) -> None:
    loaded.close()
    trim_memory()


def _collect(ensemble: "weakref.ref[Ensemble]", loop: asyncio.AbstractEventLoop) -> None:
    """Collect an ensemble that only reference cycles hold, such as exceptions of failed requests."""
    if ensemble() is not None:
        gc.collect()
        loop.call_later(COLLECT_S, _collect, ensemble, loop)
