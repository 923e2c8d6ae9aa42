"""Available memory, and the return of freed memory to the system."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coserve_server.machine.cgroups import cgroup_folders, read

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
FREED_MEMORY = {
    "MALLOC_ARENA_MAX": (M_ARENA_MAX, 2),
    "MALLOC_MMAP_THRESHOLD_": (M_MMAP_THRESHOLD, 2**20),
    "MALLOC_TRIM_THRESHOLD_": (M_TRIM_THRESHOLD, 4 * 2**20),
}
"""Parameters of mallopt(3) and their values, by the variables that set them too."""


def return_freed_memory() -> None:
    """Have what is freed go back to the system, where the C library is glibc; before threads are started.

    By itself glibc makes up to eight arenas per core, each of which keeps what its threads freed; and once a
    large block was freed, later ones come from there too. Half an hour of mixed load and reloads cost 250 MB.
    A variable in the environment goes before the value here.
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is not None:
        for variable, (parameter, value) in FREED_MEMORY.items():
            if variable not in os.environ:
                mallopt(parameter, value)


def trim_memory() -> None:
    """Have also go back what was freed between blocks in use, where the C library is glibc (malloc_trim(3)).

    Without it 120 reloads of six small ensembles ended at 316 MB and not at 261. It took up to 5 ms, in which
    other threads' allocations may wait.
    """
    malloc_trim = _of_c_library("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_c_library(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def available_bytes(root: Path = Path("/")) -> float:
    """What the process may take before something is swapped out or killed; infinite where nothing says.

    The least of the kernel's own estimate for the machine (`MemAvailable`, proc_meminfo(5)) and what the
    limits of the process's control groups leave, page cache not counted as used.

    Args:
        root: where `proc` and `sys` lie; tests give a folder.
    """
    return min([*_machine(root), *_groups(root)], default=float("inf"))


def _machine(root: Path) -> Iterator[int]:
    for line in read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(root: Path) -> Iterator[int]:
    for folder, version in cgroup_folders(root, "memory"):
        two = version == 2
        limit = read(folder / ("memory.max" if two else "memory.limit_in_bytes")).strip()
        used = read(folder / ("memory.current" if two else "memory.usage_in_bytes")).strip()
        if limit.isdecimal() and used.isdecimal():
            cache = _page_cache(folder, "" if two else "total_")
            yield max(0, int(limit) - int(used) + cache)


def _page_cache(folder: Path, prefix: str) -> int:
    """Of files, which the kernel drops before it kills anything."""
    lines = (line.split() for line in read(folder / "memory.stat").splitlines())
    return sum(
        int(value) for name, value in lines if name in (f"{prefix}active_file", f"{prefix}inactive_file")
    )
