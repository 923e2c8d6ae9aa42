"""Linux' control groups, which limit what the process may use: cgroups(7)."""

from collections.abc import Iterator
from pathlib import Path


def cgroup_folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Folder and version (1 or 2) of each group the process is in, and of all their parents that are visible.

    Args:
        root: where `proc` and `sys` lie.
        controller: such as `cpu`, whose hierarchies of version 1 are looked at.
    """
    for mount_root, mount_point, version, controllers in _mounts(root):
        if version == 1 and controller not in controllers:
            continue
        group = _group(root, version, controller)
        if group is None:
            continue
        # Without a cgroup namespace the path counts from the host's root, the mount from the container's.
        inside = group.relative_to(mount_root) if group.is_relative_to(mount_root) else Path()
        top = root / mount_point.relative_to("/")
        for folder in [top / inside, *(top / parent for parent in inside.parents)]:
            yield folder, version


def read(path: Path) -> str:
    """The file's text, empty where it does not exist: not every system has control groups."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""


def _mounts(root: Path) -> Iterator[tuple[Path, Path, int, list[str]]]:
    """(root within the hierarchy, mount point, version, super options) of each cgroup mount.

    The line format is proc_pid_mountinfo(5)'s.
    """
    for line in read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (filesystem, *rest) = before.split(), after.split() or [""]
        if filesystem in ("cgroup", "cgroup2") and len(fields) > 4:
            version = 2 if filesystem == "cgroup2" else 1
            yield Path(fields[3]), Path(fields[4]), version, rest[-1].split(",") if rest else []


def _group(root: Path, version: int, controller: str) -> Path | None:
    """The process's group in one hierarchy; the lines are `id:controllers:path`."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "" if version == 2 else controller in controllers.split(","):
            return Path(path)
    return None
