"""How much memory there is, how much loading an ensemble takes, and how freed memory is kept."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from coserve_server.cgroups import cgroup_folders, read
from coserve_server.ensembles import Ensemble

BYTES_PER_BYTE = 3.5
"""Measured: what a process grows by, at most, while ONNX Runtime or OpenVINO loads and warms a network of 47
to 263 MB (WideResNet-28-10, ResNet-50, EfficientNet-B3, WideResNet-50-2) is 2.4 to 4.3 times its file."""
BYTES_PER_MEMBER = 32 * 2**20
"""And of the smallest networks, whose threads and buffers outweigh their weights, 24 to 63 MB."""

ARENAS = 2
M_ARENA_MAX = -8


def share_arenas() -> None:
    """Have all threads allocate from two arenas, where the C library is glibc; before threads are started.

    By itself it makes up to eight per core, and each keeps what its threads freed. `MALLOC_ARENA_MAX` in the
    environment goes before (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


def loading_bytes(ensemble: Ensemble) -> int:
    """About what loading an ensemble's members takes, from the sizes of their files."""
    files = sum(size for member in ensemble.members for _, size, *_ in member.stamps)
    return int(files * BYTES_PER_BYTE) + len(ensemble.members) * BYTES_PER_MEMBER


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
