"""The CPU cores that this process may use: its affinity, limited by the quotas of its control groups."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coserve_server.machine.cgroups import find_cgroup_folders, read_file


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


def usable_cores(root: Path = Path("/")) -> Cores:
    """Return the smaller of the CPU affinity and the CPU bandwidth quotas, rounded down.

    The quotas of all of the process's control groups count: version 1 (`cpu.cfs_quota_us`) and 2 (`cpu.max`).

    Args:
        root: folder of `proc` and `sys`; tests use a temporary one.
    """
    quota = min(_read_quotas(root), default=float("inf"))
    if not hasattr(os, "sched_getaffinity"):
        return Cores(max(1, int(min(os.cpu_count() or 1, quota))), None)
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    if quota < len(allowed):
        return Cores(max(1, int(quota)), None)
    return Cores(len(allowed), allowed)


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
        limit = read_file(folder / "cpu.cfs_quota_us").strip()
        period = read_file(folder / "cpu.cfs_period_us").strip()
    if limit in ("", "max", "-1") or not period:
        return None
    return int(limit) / int(period)
