"""The cores and the memory that this process may use, in a container too."""

import os
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
"""Holds the limits of a container: cgroups(7), version 2."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("cpu.max").partition(" ")
    return min(cores, -(-int(quota) // int(period))) if quota.isdecimal() else cores


def usable_bytes() -> int:
    """Return the size of the memory that this process may use."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("memory.max")
    return min(installed, int(limit)) if limit.isdecimal() else installed


def _read(name: str) -> str:
    """Read a limit, which may be `max`; return an empty text if there is none."""
    try:
        return (GROUP / name).read_text().strip()
    except OSError:
        return ""
