"""An engine in this process: which generations of which ensembles are loaded, and whose turn it is."""

import asyncio
import gc
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.embedded.choice import Choice
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.embedded.loaded_ensemble import Generation
from coserve_server.engines.embedded.members import Load, LoadedMember
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import check_unchanged
from coserve_server.machine.cores import Cores
from coserve_server.machine.memory import trim_memory

NONE: frozenset[str] = frozenset()
NOTHING = "no ensemble is loaded"
COLLECT_S = 60


class EmbeddedEngine:
    """Runs members on threads of this process. The devices belong to one batch of one ensemble at a time.

    Attributes:
        load_errors: why the newest files of a model are not what is served, by name; whoever calls `replace`
            writes them.
    """

    def __init__(
        self,
        load: Load,
        choice: Choice,
        cores: Cores,
        ensembles: Mapping[str, Ensemble],
    ) -> None:
        """Load and warm every member.

        Args:
            load: how a library loads one member.

        Raises:
            EngineError: a member cannot be loaded, or does not fit its ensemble.
        """
        self.load_errors: Mapping[str, str] = {}
        self._load_member, self._choice = load, choice
        self._cores = cores if choice.pinned else replace(cores, ids=None)
        self._generations: dict[int, Generation] = {}
        """By the identity of their ensembles, also those that only requests in progress still hold."""
        self._versions: dict[str, tuple[Ensemble, ...]] = {}
        self._newest: dict[str, Ensemble] = {}
        for name, ensemble in ensembles.items():
            ensemble = self._limited(ensemble)
            self._generations[id(ensemble)] = self._generation(ensemble)
            self._serve(name, (ensemble,))

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """The newest version of everything served, by name."""
        return self._newest

    def versions(self, name: str) -> Sequence[Ensemble]:
        """The versions of an ensemble that are served, newest last."""
        return self._versions.get(name, ())

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Members of a loaded ensemble whose thread is not stuck; none after `close`."""
        if id(ensemble.whole) not in self._generations:
            return NONE
        return frozenset(one.member.name for one in self._members(ensemble) if not one.lane.stuck)

    def faults(self) -> list[str]:
        """That nothing is loaded; a new version that cannot be loaded is no fault of the old one's."""
        return [] if self._newest else [NOTHING]

    def absence(self, name: str | None) -> str | None:
        """That nothing is loaded, or why the ensemble named could not be."""
        if name is not None:
            return self.load_errors.get(name)
        return None if self._newest else NOTHING

    def describe(self, ensemble: Ensemble) -> str:
        """The ensemble's thread budget, and the devices of its lanes."""
        lanes = self._generations[id(ensemble.whole)].lanes
        threads, devices = lanes[0].threads, ", ".join(lane.device for lane in lanes)
        share = f"{len(lanes)} at a time, {threads} thread{'s' * (threads > 1)} each on {devices}"
        return f"{share} ({self._cores.count} cores usable)"

    def batches(self, ensemble: Ensemble) -> bool:
        """No."""
        return False

    def resource(self, ensemble: Ensemble) -> Hashable:
        """The devices: all that the engine has."""
        return self._cores

    def lanes(self, ensemble: Ensemble) -> int:
        """Members that run at a time."""
        return min(len(ensemble.members), len(self._generations[id(ensemble.whole)].lanes))

    def allocate(self, shape: tuple[int, ...]) -> Batch:
        """What NumPy gives."""
        return np.empty(shape, np.float32)

    def start(self, ensemble: Ensemble, batch: Batch) -> list[asyncio.Future[MemberRun]]:
        """Hand the batch to every member's lane that is not stuck."""
        # Nothing else between the submissions: the members are to start together.
        return [member.start(batch) for member in self._members(ensemble)]

    async def replace(self, name: str, ensembles: Sequence[Ensemble]) -> bool:
        """Serve these versions of an ensemble, newest last, in place of those served; none: stop serving it.

        What changes is loaded and warmed on a thread, beside what is served, and then taken over at once.
        Requests keep the version they began with; it is freed when the last of them has its answer.

        Returns:
            whether that changed anything.

        Raises:
            EngineError, RepositoryError: a member cannot be loaded; what was served still is.
        """
        served = self.versions(name)
        new = self.unserved(name, ensembles)
        known = [*served, *new]
        wanted = [next(old for old in known if old == self._limited(one)) for one in ensembles]
        generations = await asyncio.to_thread(self._load, new)
        self._generations.update(zip(map(id, new), generations, strict=True))
        self._serve(name, tuple(wanted))
        gone = [old for old in served if not any(old is one for one in wanted)]
        loop = asyncio.get_running_loop()
        for old in gone:
            weakref.finalize(old, self._unheld, id(old), loop).atexit = False
            loop.call_later(COLLECT_S, _collect, weakref.ref(old), loop)
        return bool(new or gone)

    def unserved(self, name: str, ensembles: Sequence[Ensemble]) -> list[Ensemble]:
        """Those of an ensemble's versions that serving them would load.

        Descriptions tell files by their times and sizes: equal ones need not be loaded again.
        """
        served = self.versions(name)
        return [one for one in map(self._limited, ensembles) if one not in served]

    async def close(self) -> None:
        """End the threads and free the sessions; no batch may run any more."""
        while self._generations:
            self._generations.popitem()[1].close()

    def _members(self, ensemble: Ensemble) -> list[LoadedMember]:
        loaded = self._generations[id(ensemble.whole)].members
        return [one for one in loaded if one.member in ensemble.members]

    def _limited(self, ensemble: Ensemble) -> Ensemble:
        limit = self._choice.max_batch_size
        if limit is None or ensemble.max_batch_size <= limit:
            return ensemble
        return replace(ensemble, max_batch_size=limit)

    def _serve(self, name: str, versions: tuple[Ensemble, ...]) -> None:
        served = {**self._versions, name: versions}
        self._versions = {one: served[one] for one in sorted(served) if served[one]}
        self._newest = {one: versions[-1] for one, versions in self._versions.items()}

    def _generation(self, ensemble: Ensemble) -> Generation:
        return Generation(ensemble, self._load_member, self._new_lanes(ensemble))

    def _new_lanes(self, ensemble: Ensemble) -> list[Lane]:
        """What the members are to run on, in turn: shares of the cores."""
        budget = ThreadBudget.share(len(ensemble.members), self._cores.count, self._choice.threads)
        cores, size = self._cores.ids if self._pins(budget) else None, budget.threads
        return [
            Lane(f"{ensemble.name}-{i}", cores and cores[i * size : (i + 1) * size], size)
            for i in range(budget.lanes)
        ]

    def _pins(self, budget: ThreadBudget) -> bool:
        """Whether the library's threads stay on the cores of the lane that loads a member."""
        return True

    def _load(self, ensembles: Sequence[Ensemble]) -> list[Generation]:
        """Load all or none."""
        generations: list[Generation] = []
        try:
            for ensemble in ensembles:
                generations.append(self._generation(ensemble))
                check_unchanged(ensemble)
        except BaseException:
            for generation in generations:
                generation.close()
            raise
        return generations

    def _unheld(self, key: int, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody can ask for that ensemble any more; called on whichever thread let go of it last."""
        generation = self._generations.pop(key, None)
        if generation is not None and not loop.is_closed():
            loop.call_soon_threadsafe(loop.run_in_executor, None, _free, generation)


def _free(generation: Generation) -> None:
    generation.close()
    trim_memory()


def _collect(ensemble: "weakref.ref[Ensemble]", loop: asyncio.AbstractEventLoop) -> None:
    """Let go of an ensemble that only circles of references hold, as exceptions of failed requests are."""
    if ensemble() is not None:
        gc.collect()
        loop.call_later(COLLECT_S, _collect, ensemble, loop)
