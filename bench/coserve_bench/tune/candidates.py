"""Ways to serve: ensembles × engines × precisions × threads."""

import importlib.util
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import product

from coserve_bench.engine import ENGINES, LoadedNetworks, exported_precision, load_ensemble
from coserve_bench.errors import BenchError
from coserve_bench.progress import Progress
from coserve_bench.stopping import check_stopped, run_until_stopped
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import precisions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import EngineError
from coserve_server.machine.cores import Cores


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to serve an ensemble.

    Attributes:
        top1: accuracy, a fraction; None if it was not measured.
    """

    ensemble: Ensemble
    options: EngineOptions
    top1: float | None = None

    @property
    def precision(self) -> str:
        """Precision of the arithmetic: the networks' own, or that in which fp32 networks are computed."""
        own = exported_precision(self.ensemble)
        return self.options.precision if own == "fp32" else own

    @property
    def name(self) -> str:
        """Ensemble, precision and engine: all that the logits depend on."""
        return f"{self.ensemble.name} in {self.precision} with {self.options.engine}"


def installed_engines() -> list[str]:
    """Return the engines whose library is installed."""
    return [name for name in ENGINES if importlib.util.find_spec(name) is not None]


def variants(ensembles: Sequence[Ensemble], engines: Sequence[str]) -> list[Candidate]:
    """Return every ensemble in every engine and precision, with default threads and the recorded accuracy.

    Raises:
        BenchError: an engine is unknown, or an ensemble's classes or preprocessing differ from the first's.
        SettingsError: an engine is not installed.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise BenchError(f"unknown engine {engine!r}: choose from {', '.join(ENGINES)}")
    first, *others = ensembles
    for other in others:
        if (other.labels, other.preprocessing) != (first.labels, first.preprocessing):
            raise BenchError(f"{other.name} differs from {first.name} in its classes or preprocessing")
    candidates = []
    for ensemble, engine in product(ensembles, engines):
        members = len(ensemble.members)
        top1 = ensemble.accuracy.top1(range(members), members)
        candidates.append(Candidate(ensemble, EngineOptions(engine), top1))
        if exported_precision(ensemble) == "fp32" and "bf16" in precisions(engine):
            # The recorded accuracy belongs to the exported networks, which are in fp32.
            candidates.append(Candidate(ensemble, EngineOptions(engine, precision="bf16")))
    return candidates


def loadable(candidates: Sequence[Candidate], cores: Cores) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates that can be loaded, and by name why the others cannot.

    Raises:
        BenchError: no candidate with the first ensemble can be loaded; the others are compared with it.
    """
    faults = {one.name: fault for one in candidates if (fault := _load_fault(one, cores)) is not None}
    if all(one.name in faults for one in candidates if one.ensemble is candidates[0].ensemble):
        raise BenchError(faults[candidates[0].name])
    return [one for one in candidates if one.name not in faults], faults


def comparable(
    candidates: Sequence[Candidate], max_accuracy_loss: float
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates that may replace the first one, and by name why the others may not.

    Args:
        max_accuracy_loss: top-1 accuracy that may be lost, in percentage points.
    """
    first, *others = candidates
    kept = [first]
    left_out = {}
    for other in others:
        if first.top1 is not None and other.top1 is not None:
            lost = 100 * (first.top1 - other.top1)
            if lost > max_accuracy_loss:
                left_out[other.name] = f"{lost:.2f} points less accurate than {first.name}"
                continue
        elif (other.ensemble, other.precision) != (first.ensemble, first.precision):
            unknown = first if first.top1 is None else other
            left_out[other.name] = f"the accuracy of {unknown.name} is not known; give --evaluation-data"
            continue
        kept.append(other)
    return kept, left_out


def with_threads(candidates: Sequence[Candidate], cores: Cores) -> list[Candidate]:
    """Return each candidate with every number of threads, pinned and not; the default comes first."""
    return [
        replace(one, options=replace(one.options, threads=threads, pinned=pinned))
        for one in candidates
        for threads in _thread_counts(len(one.ensemble.members), cores)
        for pinned in ([True, False] if cores.ids else [False])
    ]


async def load_all(
    candidates: Sequence[Candidate], cores: Cores, stack: AsyncExitStack, progress: Progress | None
) -> list[LoadedNetworks]:
    """Load every candidate; the stack closes them.

    Raises:
        EngineError: one cannot be loaded.
    """
    loaded = []
    for done, candidate in enumerate(candidates, start=1):
        check_stopped()
        networks = load_ensemble(candidate.ensemble, candidate.options, cores)
        stack.push_async_callback(networks.close)
        loaded.append(networks)
        if progress is not None:
            progress("loading", done, len(candidates))
    return loaded


def _load_fault(candidate: Candidate, cores: Cores) -> str | None:
    """Return why a candidate cannot be loaded; None if it can."""

    async def load() -> None:
        await load_ensemble(candidate.ensemble, candidate.options, cores).close()

    try:
        run_until_stopped(load())
    except EngineError as error:
        return str(error)
    return None


def _thread_counts(members: int, cores: Cores) -> list[int]:
    """Return threads per member to try: an even share of the cores, one, all cores."""
    return list(dict.fromkeys((ThreadBudget.share(members, cores.nodes).threads, 1, cores.count)))
