"""Linux control groups, which limit a process's CPU time and memory: cgroups(7)."""

from collections.abc import Iterator
from pathlib import Path

from coserve_server.files import read_bytes

MAX_BYTES = 2**24
MAX_DIGITS = 25
"""More digits than a 64-bit number has."""


def find_cgroup_folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Find the folders of the process's groups and their visible parents, each with its version (1 or 2).

    Args:
        root: folder of `proc` and `sys`.
        controller: a controller of version 1, such as `cpu`.
    """
    for mount_root, mount_point, version, controllers in _mounts(root):
        if version == 1 and controller not in controllers:
            continue
        group = _group(root, version, controller)
        if group is None:
            continue
        # Without a cgroup namespace, the path starts at the host's root but the mount at the container's.
        inside = group.relative_to(mount_root) if group.is_relative_to(mount_root) else Path()
        top = root / str(mount_point).lstrip("/")
        for folder in [top / inside, *(top / parent for parent in inside.parents)]:
            yield folder, version


def read_file(path: Path) -> str:
    """Read one of the kernel's files, or return an empty text: not every system has, or shows, every file."""
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def parse_number(text: str) -> int | None:
    """Parse the number in one of the kernel's files; None for other text, such as `max`."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS else None


def _mounts(root: Path) -> Iterator[tuple[Path, Path, int, list[str]]]:
    """Read the cgroup mounts from proc_pid_mountinfo(5).

    Returns:
        For each mount: its root within the hierarchy, mount point, version, super options.
    """
    for line in read_file(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        filesystem, *rest = after.split() or [""]
        if filesystem in ("cgroup", "cgroup2") and len(fields) > 4:
            version = 2 if filesystem == "cgroup2" else 1
            yield Path(fields[3]), Path(fields[4]), version, rest[-1].split(",") if rest else []


def _group(root: Path, version: int, controller: str) -> Path | None:
    """Return the process's group in one hierarchy; the lines are `id:controllers:path`."""
    for line in read_file(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "" if version == 2 else controller in controllers.split(","):
            return Path(path)
    return None
