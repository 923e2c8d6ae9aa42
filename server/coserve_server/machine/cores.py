"""The CPU cores that this process may use: its affinity, limited by the quotas of its control groups."""

import functools
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coserve_server.machine.cgroups import find_cgroup_folders, parse_number, read_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cores:
    """The CPU cores that the process may use.

    Attributes:
        count: number of whole cores, at least 1.
        ids: the kernel's numbers of these cores. None if threads must not be pinned: under a quota lower than
            the affinity, the process shares all cores with others.
    """

    count: int
    ids: tuple[int, ...] | None


@dataclass(frozen=True)
class CoreLimits:
    """What limits the CPU cores of the process.

    Attributes:
        online: cores of the machine.
        affinity: the kernel's numbers of the cores that the process may run on; None if unknown.
        quota: the smallest CPU bandwidth quota of its control groups, in cores; None without any.
        physical: physical cores among those of the affinity, which hyper-threads share; None if unknown.
    """

    online: int
    affinity: tuple[int, ...] | None
    quota: float | None
    physical: int | None


def core_limits(root: Path = Path("/")) -> CoreLimits:
    """Return the CPU affinity, and the quotas of control groups.

    The quotas of all of the process's control groups count: version 1 (`cpu.cfs_quota_us`) and 2 (`cpu.max`).

    Args:
        root: folder of `proc` and `sys`; tests use a temporary one.
    """
    affinity = _read_affinity()
    quota = min(_read_quotas(root), default=None)
    return CoreLimits(os.cpu_count() or 1, affinity, quota, _count_physical(affinity or (), root))


def usable_cores(root: Path = Path("/")) -> Cores:
    """Return the smaller of the CPU affinity and the CPU bandwidth quota, rounded up: see `core_limits`.

    Rounded down, a part of a quota would be left unused: with 1.5 cores, two members at once had 1.25 to 1.5
    times the throughput of two in turn.
    """
    limits = core_limits(root)
    quota = float("inf") if limits.quota is None else limits.quota
    allowed = limits.affinity
    if allowed is None:
        return Cores(math.ceil(min(limits.online, quota)), None)
    if quota < len(allowed):
        return Cores(math.ceil(quota), None)
    return Cores(len(allowed), allowed)


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


def _count_physical(cores: tuple[int, ...], root: Path) -> int | None:
    """Count the groups of hyper-threads that these cores belong to."""
    folder = root / "sys/devices/system/cpu"
    siblings = {read_file(folder / f"cpu{core}/topology/thread_siblings_list").strip() for core in cores}
    return len(siblings) if siblings and "" not in siblings else None


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
