"""Physical cores, their hyper-threads and NUMA nodes, as the kernel shows them in /sys.

Files: https://docs.kernel.org/admin-guide/cputopology.html and
https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-devices-node
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coserve_server.machine.cgroups import parse_number, read_file

MAX_CPUS = 2**16
"""More CPUs than Linux supports."""


@dataclass(frozen=True)
class PhysicalCore:
    """A physical core that the process may use.

    Attributes:
        threads: the kernel's numbers of its hyper-threads that the process may use, in ascending order.
        node: number of its NUMA node.
        package: number of its package, the chip in a socket.
    """

    threads: tuple[int, ...]
    node: int = 0
    package: int = 0


def read_topology(affinity: Iterable[int], root: Path = Path("/")) -> tuple[PhysicalCore, ...]:
    """Group hyper-threads into physical cores, ordered by package, node and number.

    Where the kernel shows no topology, as in some sandboxes, each number counts as a core of one node.

    Args:
        affinity: the kernel's numbers of the hyper-threads that the process may use.
        root: folder of `sys`; tests use a temporary one.
    """
    allowed = set(affinity)
    nodes = _read_nodes(root)
    cores: dict[tuple[int, ...], PhysicalCore] = {}
    for number in sorted(allowed):
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        siblings = parse_list(read_file(folder / "thread_siblings_list"))
        threads = tuple(sorted(allowed & siblings)) if number in siblings else (number,)
        # ARM's firmware may leave the package unknown, as -1.
        package = parse_number(read_file(folder / "physical_package_id")) or 0
        cores.setdefault(threads, PhysicalCore(threads, nodes.get(number, 0), package))
    return tuple(sorted(cores.values(), key=lambda core: (core.package, core.node, core.threads)))


def describe_topology(cores: Sequence[PhysicalCore]) -> str:
    """Return the numbers of cores, hyper-threads, packages and NUMA nodes, in one line for users."""
    threads = sum(len(core.threads) for core in cores)
    packages = len({core.package for core in cores})
    nodes = [str(size) for size in Counter(core.node for core in cores).values()]
    facts = [
        _count(len(cores), "physical core"),
        _count(packages, "package"),
        _count(len(nodes), "NUMA node"),
    ]
    if threads > len(cores):
        facts[0] += f" with {threads} hyper-threads"
    if len(nodes) > 1:
        facts[2] += f" of {' + '.join(nodes)} cores"
    return ", ".join(facts)


def parse_list(text: str) -> set[int]:
    """Parse one of the kernel's lists of CPUs, such as `0-3,8`; empty for any other text."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        start = parse_number(first)
        end = parse_number(last) if dash else start
        if start is None or end is None or end - start >= MAX_CPUS:
            return set()
        numbers.update(range(start, end + 1))
    return numbers


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _read_nodes(root: Path) -> dict[int, int]:
    """Return the NUMA node of each hyper-thread; nodes of memory alone have an empty list."""
    folder = root / "sys/devices/system/node"
    numbers = sorted(parse_list(read_file(folder / "online")))
    return {cpu: node for node in numbers for cpu in parse_list(read_file(folder / f"node{node}/cpulist"))}
