"""The CPU cores that this process may use: its affinity, limited by the quotas of its control groups."""

import functools
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from coserve_server.machine.cgroups import find_cgroup_folders, parse_number, read_file
from coserve_server.machine.topology import PhysicalCore, read_topology

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cores:
    """The CPU cores that the process may use.

    A network's threads gain little from a second hyper-thread of a core, and ONNX Runtime does not use it
    either: it is left to the event loop and to decoding.

    Attributes:
        count: number of whole physical cores, at least 1.
        ids: the kernel's numbers of these cores, one hyper-thread of each. None if threads must not be
            pinned: under a quota lower than the affinity, the process shares all cores with others.
        topology: the physical cores of `ids`, in the same order; empty if unknown.
    """

    count: int
    ids: tuple[int, ...] | None
    topology: tuple[PhysicalCore, ...] = ()

    @classmethod
    def of_topology(cls, topology: tuple[PhysicalCore, ...]) -> "Cores":
        """Return these physical cores, for threads that are pinned."""
        return cls(len(topology), tuple(core.threads[0] for core in topology), topology)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Number of cores in each NUMA node; all in one if the topology is unknown or nothing is pinned."""
        return tuple(Counter(self._node_numbers()).values())

    @property
    def numbers(self) -> tuple[int, ...]:
        """`ids`; numbers that only count the cores if threads must not be pinned."""
        return tuple(range(self.count)) if self.ids is None else self.ids

    def enough_for(self, members: int) -> "Cores":
        """Return these cores, or all of their hyper-threads if there are fewer cores than members.

        Members that run at once on two hyper-threads of a core are done sooner than in turn.
        """
        if self.ids is None or self.count >= members:
            return self
        ranked = [
            (rank, PhysicalCore((thread,), core.node, core.package))
            for core in self.topology
            for rank, thread in enumerate(core.threads)
        ]
        ranked.sort(key=lambda pair: pair[0])
        return Cores.of_topology(tuple(core for _, core in ranked)) if ranked else self

    def place(
        self, groups: int, size: int, used: Mapping[int, int] = MappingProxyType({})
    ) -> list[tuple[int, ...]]:
        """Divide the cores among groups of threads: `size` cores each, of one NUMA node if any has room.

        The nodes take turns.

        Args:
            used: how much else each core is used for, by its number; the least used come first.

        Returns:
            each group's `numbers`.
        """
        free: dict[int, list[int]] = {}
        pairs = zip(self.numbers, self._node_numbers(), strict=True)
        for core, node in sorted(pairs, key=lambda pair: used.get(pair[0], 0)):
            free.setdefault(node, []).append(core)
        placed = []
        for _ in range(groups):
            taken: list[int] = []
            while len(taken) < size:
                roomiest = max(free.values(), key=len)
                wanted = size - len(taken)
                taken += roomiest[:wanted]
                del roomiest[:wanted]
            placed.append(tuple(taken))
        return placed

    def _node_numbers(self) -> list[int]:
        if self.ids is None or not self.topology:
            return [0] * self.count
        return [core.node for core in self.topology]


@dataclass(frozen=True)
class CoreLimits:
    """What limits the CPU cores of the process.

    Attributes:
        online: cores of the machine.
        affinity: the kernel's numbers of the cores that the process may run on; None if unknown.
        quota: the smallest CPU bandwidth quota of its control groups, in cores; None without any.
        topology: physical cores of the affinity; empty if unknown.
    """

    online: int
    affinity: tuple[int, ...] | None
    quota: float | None
    topology: tuple[PhysicalCore, ...] = ()


def core_limits(root: Path = Path("/")) -> CoreLimits:
    """Return the CPU affinity, and the quotas of control groups.

    The quotas of all of the process's control groups count: version 1 (`cpu.cfs_quota_us`) and 2 (`cpu.max`).

    Args:
        root: folder of `proc` and `sys`; tests use a temporary one.
    """
    affinity = _read_affinity()
    quota = min(_read_quotas(root), default=None)
    return CoreLimits(os.cpu_count() or 1, affinity, quota, read_topology(affinity or (), root))


def usable_cores(root: Path = Path("/")) -> Cores:
    """Return the physical cores of the CPU affinity, at most as many as the quota, rounded up, allows.

    See `core_limits`. Rounded down, a part of a quota would be left unused: with 1.5 cores, two members at
    once had 1.25 to 1.5 times the throughput of two in turn.
    """
    limits = core_limits(root)
    quota = float("inf") if limits.quota is None else limits.quota
    allowed = limits.affinity
    if allowed is None:
        return Cores(math.ceil(min(limits.online, quota)), None)
    if quota < len(allowed):
        return Cores(min(math.ceil(quota), len(limits.topology)), None)
    return Cores.of_topology(limits.topology)


def pin_thread(cores: tuple[int, ...], thread: int = 0) -> bool:
    """Keep a thread on these cores, if the system allows it; return whether it does.

    Args:
        thread: the kernel's number of the thread; 0 for the calling one.
    """
    try:
        os.sched_setaffinity(thread, cores)
    except (OSError, AttributeError) as error:
        _warn_unpinned(str(error))
        return False
    return True


@functools.lru_cache
def _warn_unpinned(reason: str) -> None:
    """Log once why threads are not pinned."""
    logger.warning("members are not pinned to cores, as with pin_members=false: %s", reason)


def _read_affinity() -> tuple[int, ...] | None:
    """Return the cores that the process may use; None if the system cannot tell, or does not want to."""
    try:
        return tuple(sorted(os.sched_getaffinity(0))) or None
    except (OSError, AttributeError):
        return None


def _read_quotas(root: Path) -> Iterator[float]:
    """Read the quotas of the process's control groups, in cores."""
    for folder, version in find_cgroup_folders(root, "cpu"):
        quota = _read_quota(folder, version)
        if quota is not None:
            yield quota


def _read_quota(folder: Path, version: int) -> float | None:
    if version == 2:
        limit, _, period = read_file(folder / "cpu.max").strip().partition(" ")
    else:
        limit = read_file(folder / "cpu.cfs_quota_us")
        period = read_file(folder / "cpu.cfs_period_us")
    quota_us = parse_number(limit)
    period_us = parse_number(period)
    return quota_us / period_us if quota_us and period_us else None
