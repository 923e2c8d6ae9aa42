import pytest

from coserve_server.engines.embedded.lanes import ThreadBudget
from coserve_server.machine.cores import Cores
from tests.server.machine.conftest import Simulate
from tests.server.machine.machines import Machine

MACHINES = {
    "2 x 32 far": Machine(packages=2, cores=32, siblings="far"),
    "4 nodes near": Machine(nodes=4, cores=24, siblings="near"),
    "96": Machine(cores=96),
    "alternating": Machine(packages=2, cores=4, siblings="far", interleaved=True),
    "cloud": Machine(cores=2, siblings="near"),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("threads", [None, 1, 4])
def test_each_member_has_physical_cores_of_its_own_in_one_node(
    simulate: Simulate, machine: Machine, members: int, threads: int | None
) -> None:
    cores = simulate(machine)
    budget = ThreadBudget.share(members, cores.nodes, threads)
    placed = cores.place(budget.lanes, budget.threads)
    assert [len(group) for group in placed] == [budget.threads] * budget.lanes
    core_of = {thread: core for core in cores.topology for thread in core.threads}
    used = [core_of[thread] for group in placed for thread in group]
    assert len({core.threads for core in used}) == len(used), "two threads share a core"
    if budget.threads <= max(cores.nodes):
        assert all(len({core_of[thread].node for thread in group}) == 1 for group in placed)


def test_members_are_spread_over_the_nodes(simulate: Simulate) -> None:
    cores = simulate(MACHINES["2 x 32 far"])
    assert cores.place(4, 2) == [(0, 1), (32, 33), (2, 3), (34, 35)]


def test_more_threads_than_a_node_has_cores_span_nodes(simulate: Simulate) -> None:
    cores = simulate(Machine(packages=2, cores=3))
    assert cores.place(1, 5) == [(0, 1, 2, 3, 4)]


def test_under_a_quota_cores_are_only_counted(simulate: Simulate) -> None:
    cores = simulate(MACHINES["96"], quota=8)
    assert cores.ids is None
    assert cores.place(2, 4) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_the_least_used_cores_come_first() -> None:
    cores = Cores(5, (2, 3, 5, 7, 9))
    assert cores.place(2, 2, {2: 1, 3: 1, 5: 2}) == [(7, 9), (2, 3)]


def test_the_node_of_the_least_used_cores_comes_first(simulate: Simulate) -> None:
    cores = simulate(Machine(packages=2, cores=2))
    assert cores.place(1, 2, {0: 1, 1: 1}) == [(2, 3)]


def test_cores_of_an_unknown_topology_are_given_in_order() -> None:
    assert Cores(4, (3, 5, 7, 9)).place(2, 2) == [(3, 5), (7, 9)]


def test_a_machine_of_hyper_threads_alone_keeps_one_for_other_work(simulate: Simulate) -> None:
    cores = simulate(Machine(cores=1, siblings="near"))
    assert cores.place(1, 1) == [(0,)]


@pytest.mark.parametrize(
    ("machine", "members", "ids"),
    [
        (Machine(cores=1, siblings="near"), 1, (0,)),
        (Machine(cores=1, siblings="near"), 2, (0, 1)),
        (Machine(cores=2, siblings="near"), 2, (0, 2)),
        # Hyper-threads of different cores first.
        (Machine(cores=2, siblings="near"), 3, (0, 2, 1, 3)),
        (Machine(cores=2, siblings="far"), 4, (0, 1, 2, 3)),
        (Machine(cores=2), 4, (0, 1)),
    ],
)
def test_more_members_than_cores_run_on_hyper_threads(
    simulate: Simulate, machine: Machine, members: int, ids: tuple[int, ...]
) -> None:
    cores = simulate(machine).enough_for(members)
    assert cores.ids == ids
    assert cores.count == len(ids)


def test_hyper_threads_stay_in_their_nodes(simulate: Simulate) -> None:
    cores = simulate(Machine(packages=2, cores=1, siblings="far")).enough_for(4)
    assert cores.nodes == (2, 2)


@pytest.mark.parametrize("cores", [Cores(1, None), Cores(2, (3, 5))])
def test_unknown_hyper_threads_are_not_used(cores: Cores) -> None:
    assert cores.enough_for(4) == cores
