"""Divides the machine among worker processes: each gets whole physical cores of one NUMA node, or GPUs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coserve_server.machine.cores import Cores
from coserve_server.machine.topology import PhysicalCore

T = TypeVar("T")

MEMBER_THREADS = 4
"""Threads per member to plan with until `coserve tune` has measured a better number: a network's speed-up
falls off with more threads, while more workers also give more event loops."""


@dataclass(frozen=True)
class Slice:
    """What one worker gets of the machine.

    Attributes:
        cores: its share of the physical cores.
        cpus: all hyper-threads of these cores, for the worker's affinity; None to leave the affinity alone.
        gpus: numbers of its GPUs.
    """

    cores: Cores
    cpus: tuple[int, ...] | None
    gpus: tuple[int, ...] = ()


def plan_workers(
    cores: Cores,
    sizes: Sequence[int],
    workers: int | None = None,
    *,
    threads: int | None = None,
    gpus: Sequence[int] = (),
) -> list[Slice]:
    """Divide the machine into one slice per worker.

    Args:
        cores: the cores that all workers may use together.
        sizes: numbers of members of the ensembles served; empty if unknown.
        workers: number of workers; None for as many as have cores for all members of the largest ensemble,
            or a GPU for each of them.
        threads: threads per member; None for `MEMBER_THREADS`.
        gpus: numbers of the GPUs that run the members; empty if cores do.

    Raises:
        ValueError: there are more workers than cores; the text says so in words fit for a user.
    """
    count = workers or _default_count(cores, max(sizes, default=1), threads or MEMBER_THREADS, len(gpus))
    if count > cores.count:
        raise ValueError(f"{count} workers need {count} cores; this process may use {cores.count}")
    if count == 1:
        return [Slice(cores, None, tuple(gpus))]
    parts = _divide_cores(cores, count)
    return [Slice(*part, _share_gpus(gpus, index, count)) for index, part in enumerate(parts)]


def _default_count(cores: Cores, members: int, threads: int, gpus: int) -> int:
    """Return how many workers have room for every member, each on threads or on a GPU of its own."""
    if gpus:
        # Too few GPUs for that: the members of each worker share one.
        return min(gpus // members or gpus, cores.count)
    # A node with fewer cores than members is no place for a worker.
    return sum(max(1, size // (members * threads)) for size in cores.nodes if size >= members) or 1


def _share_gpus(gpus: Sequence[int], index: int, count: int) -> tuple[int, ...]:
    """Return a worker's part of the GPUs, or one that it shares with others if there are too few."""
    if gpus and count > len(gpus):
        return (gpus[index % len(gpus)],)
    return tuple(_part(gpus, index, count))


def _divide_cores(cores: Cores, count: int) -> list[tuple[Cores, tuple[int, ...] | None]]:
    if cores.ids is None:
        return [(Cores(len(_part(range(cores.count), index, count)), None), None) for index in range(count)]
    topology = cores.topology or tuple(PhysicalCore((number,)) for number in cores.ids)
    parts = _divide(topology, count, [lambda core: core.package, lambda core: core.node])
    return [
        (Cores.of_topology(part), tuple(sorted(cpu for core in part for cpu in core.threads)))
        for part in parts
    ]


def _divide(
    cores: Sequence[PhysicalCore], count: int, levels: Sequence[Callable[[PhysicalCore], int]]
) -> list[tuple[PhysicalCore, ...]]:
    """Divide cores into parts in proportion to their groups at each level, so that few parts span groups."""
    if not levels:
        return [tuple(_part(cores, index, count)) for index in range(count)]
    level, *inner = levels
    groups = [[core for core in cores if level(core) == number] for number in Counter(map(level, cores))]
    counts = _apportion([len(group) for group in groups], count)
    parts: list[tuple[PhysicalCore, ...]] = []
    for group, number in zip(groups, counts, strict=True):
        if number:
            parts += _divide(group, number, inner)
    for group in (group for group, number in zip(groups, counts, strict=True) if not number):
        smallest = min(range(count), key=lambda index: len(parts[index]))
        parts[smallest] += tuple(group)
    return parts


def _apportion(sizes: Sequence[int], count: int) -> list[int]:
    """Apportion a count to groups of these sizes by the largest remainder (Hamilton's method)."""
    total = sum(sizes)
    counts = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: -(count * sizes[index] % total))
    for index in by_remainder[: count - sum(counts)]:
        counts[index] += 1
    return counts


def _part(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Return one of `count` parts, whose lengths differ by at most one."""
    return items[len(items) * index // count : len(items) * (index + 1) // count]
