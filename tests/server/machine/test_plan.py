import pickle
from collections.abc import Sequence

import pytest

from coserve_server.machine.cores import Cores
from coserve_server.machine.plan import Slice, plan_workers
from tests.server.machine.conftest import Simulate
from tests.server.machine.machines import Machine

XEONS = Machine(packages=2, cores=32, siblings="far")
NPS4 = Machine(packages=2, nodes=4, cores=12, siblings="far")


def counts(slices: Sequence[Slice]) -> list[int]:
    return [one.cores.count for one in slices]


@pytest.mark.parametrize(
    ("machine", "sizes", "threads", "expected"),
    [
        (Machine(cores=2), [2], None, [2]),
        (Machine(cores=2), [1], None, [2]),
        (Machine(cores=2), [2], 1, [2]),
        (Machine(cores=8), [2], None, [8]),
        (Machine(cores=8), [2], 2, [4] * 2),
        (Machine(cores=32), [2], None, [8] * 4),
        (Machine(cores=64), [2], None, [8] * 8),
        (Machine(cores=64), [1, 2, 4], None, [16] * 4),
        (Machine(cores=96), [4], None, [16] * 6),
        (Machine(cores=60), [2], None, [8, 9, 8, 9, 8, 9, 9]),
        (XEONS, [2], None, [8] * 8),
        (XEONS, [5], None, [32] * 2),
        (XEONS, [33], None, [64]),
        (XEONS, [], None, [4] * 16),
        (Machine(packages=2, cores=4), [2], None, [4] * 2),
        (Machine(packages=2, cores=1), [2], None, [2]),
        (NPS4, [2], None, [12] * 8),
    ],
)
def test_by_default_each_worker_has_cores_for_all_members(
    simulate: Simulate, machine: Machine, sizes: list[int], threads: int | None, expected: list[int]
) -> None:
    slices = plan_workers(simulate(machine), sizes, threads=threads)
    assert sorted(counts(slices)) == sorted(expected)


@pytest.mark.parametrize(
    "machine", [Machine(cores=96), XEONS, NPS4, Machine(cores=7, siblings="near")], ids=str
)
@pytest.mark.parametrize("workers", [2, 3, 4, 7])
def test_slices_are_disjoint_and_together_the_machine(
    simulate: Simulate, machine: Machine, workers: int
) -> None:
    cores = simulate(machine)
    slices = plan_workers(cores, [2], workers)
    assert len(slices) == workers
    assert sorted(core.threads for one in slices for core in one.cores.topology) == sorted(
        core.threads for core in cores.topology
    )
    for one in slices:
        assert one.cpus == tuple(sorted(cpu for core in one.cores.topology for cpu in core.threads))
        assert one.cores.ids == tuple(core.threads[0] for core in one.cores.topology)


def test_slices_of_a_node_keep_both_hyper_threads_of_their_cores(simulate: Simulate) -> None:
    first, *_, last = plan_workers(simulate(XEONS), [2], 8)
    assert first.cpus == (*range(8), *range(64, 72))
    assert first.cores.ids == tuple(range(8))
    assert last.cpus == (*range(56, 64), *range(120, 128))


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [
        (1, [{0, 1, 2, 3, 4, 5, 6, 7}]),
        (2, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        (4, [{0, 2}, {1, 3}, {4, 6}, {5, 7}]),
        (8, [{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}]),
        (16, [{node} for node in range(8) for _ in range(2)]),
    ],
)
def test_workers_span_as_few_packages_and_nodes_as_they_can(
    simulate: Simulate, workers: int, nodes: list[set[int]]
) -> None:
    slices = plan_workers(simulate(NPS4), [2], workers)
    assert [{core.node for core in one.cores.topology} for one in slices] == nodes


def test_cores_of_a_node_too_small_for_a_worker_go_to_the_smallest(simulate: Simulate) -> None:
    cores = simulate(Machine(packages=2, cores=32), affinity=[*range(30), 32, 33])
    assert [one.cores.nodes for one in plan_workers(cores, [2], 2)] == [(15, 2), (15,)]


@pytest.mark.parametrize(
    ("quota", "workers", "expected"),
    [(2, None, [2]), (16, None, [8, 8]), (15.5, 3, [5, 5, 6]), (64, None, [8] * 8)],
)
def test_a_quota_is_divided_without_pinning(
    simulate: Simulate, quota: float, workers: int | None, expected: list[int]
) -> None:
    slices = plan_workers(simulate(XEONS, quota=quota), [2], workers)
    assert counts(slices) == expected
    assert [(one.cores.ids, one.cpus) for one in slices] == [(None, None)] * len(expected)


def test_one_worker_has_the_machine_as_it_is(simulate: Simulate) -> None:
    cores = simulate(XEONS)
    assert plan_workers(cores, [2], 1, gpus=[3, 1]) == [Slice(cores, None, (3, 1))]


@pytest.mark.parametrize(
    ("gpus", "members", "workers", "expected"),
    [
        (8, 2, None, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (8, 1, None, [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]),
        (8, 3, None, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (2, 4, None, [(0,), (1,)]),
        (1, 4, None, [(0,)]),
        (2, 2, 3, [(0,), (1,), (0,)]),
        (3, 2, 2, [(0,), (1, 2)]),
    ],
)
def test_gpus_are_divided_like_cores(
    simulate: Simulate, gpus: int, members: int, workers: int | None, expected: list[tuple[int, ...]]
) -> None:
    slices = plan_workers(simulate(XEONS), [members], workers, gpus=range(gpus))
    assert [one.gpus for one in slices] == expected
    assert sum(counts(slices)) == 64


def test_gpus_have_no_more_workers_than_there_are_cores() -> None:
    assert counts(plan_workers(Cores(2, (0, 1)), [1], gpus=range(8))) == [1, 1]


def test_cores_of_an_unknown_topology_are_divided_in_order() -> None:
    slices = plan_workers(Cores(4, (3, 5, 7, 9)), [1], 2)
    assert [one.cpus for one in slices] == [(3, 5), (7, 9)]


def test_more_workers_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^3 workers need 3 cores; this process may use 2$"):
        plan_workers(Cores(2, (0, 1)), [2], 3)


def test_a_slice_can_be_sent_to_a_process(simulate: Simulate) -> None:
    (first, *_) = plan_workers(simulate(XEONS), [2])
    assert pickle.loads(pickle.dumps(first)) == first  # its own
