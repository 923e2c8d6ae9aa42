"""Makes the kernel's files of machines that tests do not have: /sys and /proc in a temporary folder."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


@dataclass(frozen=True)
class Machine:
    """A machine, numbered as its kernel would.

    Attributes:
        siblings: how the two hyper-threads of core k are numbered: `far` for k and k + all cores, as Intel's
            and most servers' are; `near` for 2k and 2k + 1, as some of AMD's and most virtual machines' are;
            None without hyper-threads.
        package: number of the first package; ARM's firmware may leave it unknown, as -1.
        interleaved: whether consecutive cores are on different packages, as on some of Dell's.
    """

    packages: int = 1
    nodes: int = 1
    cores: int = 2
    siblings: Literal["far", "near"] | None = None
    package: int = 0
    interleaved: bool = False

    @property
    def count(self) -> int:
        """Number of physical cores."""
        return self.packages * self.nodes * self.cores

    def threads(self, core: int) -> tuple[int, ...]:
        """Return the kernel's numbers of a core's hyper-threads."""
        if self.siblings is None:
            return (core,)
        return (core, core + self.count) if self.siblings == "far" else (2 * core, 2 * core + 1)

    def node(self, core: int) -> int:
        """Return the number of a core's node."""
        return core % (self.packages * self.nodes) if self.interleaved else core // self.cores

    def write(self, root: Path, *, offline: Collection[int] = (), bare: bool = False) -> None:
        """Write the files; without a topology if `bare`, as some sandboxes show the machine."""
        nodes: dict[int, list[int]] = {}
        for core in range(0 if bare else self.count):
            online = [thread for thread in self.threads(core) if thread not in offline]
            nodes.setdefault(self.node(core), []).extend(online)
            for thread in online:
                folder = root / f"sys/devices/system/cpu/cpu{thread}/topology"
                _write(folder / "thread_siblings_list", ",".join(map(str, online)))
                package = -1 if self.package < 0 else self.package + self.node(core) // self.nodes
                _write(folder / "physical_package_id", str(package))
        if bare:
            return
        _write(root / "sys/devices/system/node/online", f"0-{len(nodes) - 1}" if len(nodes) > 1 else "0")
        for node, threads in nodes.items():
            _write(root / f"sys/devices/system/node/node{node}/cpulist", ranges(threads))


def ranges(numbers: Collection[int]) -> str:
    """Format numbers as the kernel does: `0-3,8`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def write_quota(root: Path, cores: float) -> None:
    """Limit the process to so much CPU time, as `docker run --cpus` does."""
    _write(root / "proc/self/mountinfo", V2_MOUNT)
    _write(root / "proc/self/cgroup", "0::/")
    _write(root / "sys/fs/cgroup/cpu.max", f"{round(cores * 100000)} 100000")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
