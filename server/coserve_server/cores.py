"""How many CPU cores this process may use: its affinity, cut by the quotas of its control groups."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
    """Quotas in cores of the process's groups and all their parents that are visible."""
    for mount_root, mount_point, filesystem, options in _cgroup_mounts(root):
        group = _group(root, filesystem, options)
        if group is None:
            continue
        # Without a cgroup namespace the path counts from the host's root, the mount from the container's.
        inside = group.relative_to(mount_root) if group.is_relative_to(mount_root) else Path()
        top = root / mount_point.relative_to("/")
        for folder in [top / inside, *(top / parent for parent in inside.parents)]:
            quota = _quota(folder, filesystem)
            if quota is not None:
                yield quota


def _cgroup_mounts(root: Path) -> Iterator[tuple[Path, Path, str, list[str]]]:
    """(root within the hierarchy, mount point, file system, super options) of each cgroup mount.

    The line format is proc_pid_mountinfo(5)'s.
    """
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (filesystem, *rest) = before.split(), after.split() or [""]
        if filesystem in ("cgroup", "cgroup2") and len(fields) > 4:
            yield Path(fields[3]), Path(fields[4]), filesystem, rest[-1].split(",") if rest else []


def _group(root: Path, filesystem: str, options: list[str]) -> Path | None:
    """The process's group in one hierarchy; the lines are `id:controllers:path`, cgroups(7)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if filesystem == "cgroup2" and controllers == "":
            return Path(path)
        if filesystem == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options:
            return Path(path)
    return None


def _quota(folder: Path, filesystem: str) -> float | None:
    if filesystem == "cgroup2":
        limit, _, period = _read(folder / "cpu.max").strip().partition(" ")
    else:
        limit = _read(folder / "cpu.cfs_quota_us").strip()
        period = _read(folder / "cpu.cfs_period_us").strip()
    if limit in ("", "max", "-1") or not period:
        return None
    return int(limit) / int(period)


def _read(path: Path) -> str:
    """The file's text, empty where it does not exist: not every system has control groups."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
