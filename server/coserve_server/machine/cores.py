"""How many CPU cores this process may use: its affinity, cut by the quotas of its control groups."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coserve_server.machine.cgroups import cgroup_folders, read


@dataclass(frozen=True)
class Cores:
    """The CPU cores the process may use.

    Attributes:
        count: whole cores, at least 1.
        ids: the kernel's numbers of these cores; None where threads must not be pinned: a quota lets the
            process use some of many cores, and others' processes share them all.
    """

    count: int
    ids: tuple[int, ...] | None


def usable_cores(root: Path = Path("/")) -> Cores:
    """The smaller of the CPU affinity and the CPU bandwidth quotas, rounded down.

    Quotas are those of every control group the process is in, version 1 (`cpu.cfs_quota_us`) and
    2 (`cpu.max`).

    Args:
        root: where `proc` and `sys` lie; tests give a folder.
    """
    quota = min(_quotas(root), default=float("inf"))
    if not hasattr(os, "sched_getaffinity"):
        return Cores(max(1, int(min(os.cpu_count() or 1, quota))), None)
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    if quota < len(allowed):
        return Cores(max(1, int(quota)), None)
    return Cores(len(allowed), allowed)


def _quotas(root: Path) -> Iterator[float]:
    """Quotas in cores of the process's control groups."""
    for folder, version in cgroup_folders(root, "cpu"):
        quota = _quota(folder, version)
        if quota is not None:
            yield quota


def _quota(folder: Path, version: int) -> float | None:
    if version == 2:
        limit, _, period = read(folder / "cpu.max").strip().partition(" ")
    else:
        limit = read(folder / "cpu.cfs_quota_us").strip()
        period = read(folder / "cpu.cfs_period_us").strip()
    if limit in ("", "max", "-1") or not period:
        return None
    return int(limit) / int(period)
