from pathlib import Path

import pytest

from coserve_server.machine.topology import PhysicalCore, describe_topology, parse_list, read_topology
from tests.server.machine.conftest import Simulate
from tests.server.machine.machines import Machine, ranges

XEONS = Machine(packages=2, cores=32, siblings="far")
EPYC = Machine(nodes=4, cores=24, siblings="near")
SOCKET = Machine(cores=96)


@pytest.mark.parametrize(
    ("machine", "ids", "nodes", "line"),
    [
        (
            XEONS,
            range(64),
            (32, 32),
            "64 physical cores with 128 hyper-threads, 2 packages, 2 NUMA nodes of 32 + 32 cores",
        ),
        (
            EPYC,
            range(0, 192, 2),
            (24,) * 4,
            "96 physical cores with 192 hyper-threads, 1 package, 4 NUMA nodes of 24 + 24 + 24 + 24 cores",
        ),
        (SOCKET, range(96), (96,), "96 physical cores, 1 package, 1 NUMA node"),
        (
            Machine(packages=2, cores=28),
            range(56),
            (28, 28),
            "56 physical cores, 2 packages, 2 NUMA nodes of 28 + 28 cores",
        ),
        (
            Machine(cores=1, siblings="near"),
            (0,),
            (1,),
            "1 physical core with 2 hyper-threads, 1 package, 1 NUMA node",
        ),
        (Machine(cores=64, package=-1), range(64), (64,), "64 physical cores, 1 package, 1 NUMA node"),
    ],
    ids=["2 x 32 numbered far", "siblings numbered near", "96", "2 x 28", "cloud vCPUs", "ARM"],
)
def test_a_machine_has_one_id_for_each_physical_core(
    simulate: Simulate, machine: Machine, ids: range, nodes: tuple[int, ...], line: str
) -> None:
    cores = simulate(machine)
    assert cores.ids == tuple(ids)
    assert (cores.count, cores.nodes) == (len(ids), nodes)
    assert describe_topology(cores.topology) == line


def test_cores_are_ordered_by_package_where_the_kernel_alternates_between_them(simulate: Simulate) -> None:
    cores = simulate(Machine(packages=2, cores=4, siblings="far", interleaved=True))
    assert cores.ids == (0, 2, 4, 6, 1, 3, 5, 7)
    assert cores.topology[4] == PhysicalCore((1, 9), node=1, package=1)


def test_of_a_cpuset_each_core_counts_once(simulate: Simulate) -> None:
    cores = simulate(XEONS, affinity=[0, 1, 64, 65, 99, 40])
    assert [core.threads for core in cores.topology] == [(0, 64), (1, 65), (40,), (99,)]
    assert (cores.ids, cores.nodes) == ((0, 1, 40, 99), (2, 2))


def test_a_quota_counts_at_most_the_physical_cores(simulate: Simulate) -> None:
    assert (simulate(XEONS, quota=100).count, simulate(XEONS, quota=8.5).count) == (64, 9)
    assert simulate(XEONS, quota=100).ids is None
    assert simulate(XEONS, quota=100).nodes == (64,)
    assert simulate(XEONS, quota=128).ids == tuple(range(64))


def test_offline_cores_are_left_out(simulate: Simulate) -> None:
    cores = simulate(Machine(cores=4, siblings="far"), offline=[1, 5, 6])
    assert [core.threads for core in cores.topology] == [(0, 4), (2,), (3, 7)]


def test_without_topology_each_number_is_a_core_of_one_node(simulate: Simulate) -> None:
    cores = simulate(Machine(cores=4), bare=True)
    assert cores.topology == tuple(PhysicalCore((number,)) for number in range(4))


def test_a_core_that_its_own_siblings_do_not_name_stands_alone(tmp_path: Path) -> None:
    Machine(cores=4, siblings="near").write(tmp_path)
    for number in (0, 1):
        (tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").write_text("2-3\n")
    assert [core.threads for core in read_topology(range(4), tmp_path)] == [(0,), (1,), (2, 3)]


def test_a_node_of_memory_alone_has_no_cores(tmp_path: Path) -> None:
    Machine(packages=2, cores=2).write(tmp_path)
    (tmp_path / "sys/devices/system/node/online").write_text("0-2\n")
    memory = tmp_path / "sys/devices/system/node/node2"
    memory.mkdir()
    (memory / "cpulist").write_text("\n")
    assert [core.node for core in read_topology(range(4), tmp_path)] == [0, 0, 1, 1]


@pytest.mark.parametrize("numbers", [set(), {0}, {3, 4, 5, 9}, {*range(64), 128, 130}])
def test_lists_are_parsed_as_the_kernel_writes_them(numbers: set[int]) -> None:
    assert parse_list(ranges(numbers) + "\n") == numbers


@pytest.mark.parametrize("text", ["0-", "-3", "a-b", "0-99999999999", "1,,2", "9" * 5000])
def test_another_text_is_no_list(text: str) -> None:
    assert parse_list(text) == set()
