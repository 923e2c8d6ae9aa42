"""Ways to serve: ensembles × engines × precisions × workers × threads."""

import importlib.util
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from coserve_bench.engine import ENGINES, LoadedNetworks, exported_precision, load_ensemble
from coserve_bench.errors import BenchError
from coserve_bench.progress import Progress
from coserve_bench.stopping import check_stopped, run_until_stopped
from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.engines.embedded.loading import loading_bytes
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import precisions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import EngineError
from coserve_server.machine.cores import Cores
from coserve_server.machine.plan import Slice, plan_workers

Goal = Literal["latency", "throughput"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to serve an ensemble.

    Attributes:
        top1: accuracy, a fraction; None if it was not measured.
        workers: number of processes, each with a slice of the cores and the ensemble.
        copies: copies of the ensemble in each worker, which run batches side by side.
    """

    ensemble: Ensemble
    options: EngineOptions
    top1: float | None = None
    workers: int = 1
    copies: int = 1

    @property
    def at_once(self) -> int:
        """Number of batches that run side by side."""
        return self.workers * self.copies

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


def with_layouts(candidates: Sequence[Candidate], cores: Cores, goal: Goal) -> list[Candidate]:
    """Return each candidate with every layout, pinned and not; the default of `coserve serve` comes first.

    For latency, one worker has all cores and runs one batch: the others would be idle.
    """
    found = []
    for one in candidates:
        members = len(one.ensemble.members)
        for workers, threads in _layouts(members, cores):
            if workers > 1 and goal == "latency":
                continue
            for pinned in [True, False] if cores.ids else [False]:
                # Only threads that are pinned run on second hyper-threads.
                own = cores if pinned else replace(cores, ids=None)
                if threads > own.enough_for(members).count:
                    continue
                copies = 1 if goal == "latency" else _budget(members, own, workers, threads).copies
                options = replace(one.options, threads=threads, pinned=pinned)
                found.append(replace(one, options=options, workers=workers, copies=copies))
    return found


def fitting(candidates: Sequence[Candidate], available: float) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates that fit into memory together, and why the others are left out.

    Args:
        available: bytes of memory. Those with one copy in all are always tried; all stay loaded while they
            take turns.
    """
    kept = []
    left_out = {}
    for one in sorted(candidates, key=lambda one: one.at_once):
        needed = loading_bytes(one.ensemble) * one.at_once
        if needed > available and one.at_once > 1:
            name = f"{one.name}, {one.workers} x {one.copies} copies"
            left_out[name] = f"needs {needed / 2**30:.1f} GiB beside the others"
        else:
            kept.append(one)
            available -= needed
    return [one for one in candidates if one in kept], left_out


async def load_all(
    candidates: Sequence[Candidate], cores: Cores, stack: AsyncExitStack, progress: Progress | None
) -> list[list[LoadedNetworks]]:
    """Load every candidate, once for each of its workers; the stack closes them.

    Returns:
        for each candidate, what runs one batch at a time: the networks of a worker, once for each copy.

    Raises:
        EngineError: one cannot be loaded.
    """
    loaded = []
    for done, candidate in enumerate(candidates, start=1):
        check_stopped()
        workers = [_load(candidate, part.cores, stack) for part in _plan(candidate, cores)]
        loaded.append(workers * candidate.copies)
        if progress is not None:
            progress("loading", done, len(candidates))
    return loaded


def _plan(candidate: Candidate, cores: Cores) -> list[Slice]:
    return plan_workers(cores, [len(candidate.ensemble.members)], candidate.workers)


def _load(candidate: Candidate, cores: Cores, stack: AsyncExitStack) -> LoadedNetworks:
    networks = load_ensemble(candidate.ensemble, candidate.options, cores)
    stack.push_async_callback(networks.close)
    return networks


def _load_fault(candidate: Candidate, cores: Cores) -> str | None:
    """Return why a candidate cannot be loaded; None if it can."""

    async def load() -> None:
        await load_ensemble(candidate.ensemble, candidate.options, cores).close()

    try:
        run_until_stopped(load())
    except EngineError as error:
        return str(error)
    return None


def _layouts(members: int, cores: Cores) -> list[tuple[int, int]]:
    """Return numbers of workers and of threads per member to try.

    Several workers have 1, 2, 4… threads per member, and are as many as that leaves cores for. One worker has
    an even share of the cores for each member, one thread, or all cores; members that outnumber the cores
    share hyper-threads, as in the server.
    """
    default = len(plan_workers(cores, [members]))
    powers = [2**power for power in range(cores.count.bit_length())]
    several = [(len(plan_workers(cores, [members], threads=threads)), threads) for threads in powers]
    everything = cores.enough_for(members).count
    alone = [(1, threads) for threads in (_budget(members, cores, 1).threads, 1, everything)]
    first = (default, _budget(members, cores, default).threads)
    fit = [one for one in several if one[0] > 1 and one[0] * members * one[1] <= cores.count]
    return list(dict.fromkeys([first, *fit, *alone]))


def _budget(members: int, cores: Cores, workers: int, threads: int | None = None) -> ThreadBudget:
    """Return the budget of the smallest worker."""
    slices = plan_workers(cores, [members], workers)
    smallest = min((one.cores for one in slices), key=lambda one: one.count)
    return ThreadBudget.share(members, smallest.enough_for(members).nodes, threads)
