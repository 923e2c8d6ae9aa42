import pytest

from coserve_server.engines.embedded.lanes import ThreadBudget

NODES = [(1,), (2,), (3,), (8,), (64,), (32, 32), (24, 24, 24, 24), (3, 1), (1, 1, 1)]


@pytest.mark.parametrize("nodes", NODES, ids=str)
@pytest.mark.parametrize("members", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("threads", [None, 1, 4, 100])
def test_members_times_threads_never_exceed_the_cores(
    members: int, nodes: tuple[int, ...], threads: int | None
) -> None:
    budget = ThreadBudget.share(members, nodes, threads)
    assert 1 <= budget.lanes <= members
    assert budget.threads >= 1
    assert budget.copies >= 1
    assert budget.lanes * budget.threads * budget.copies <= sum(nodes)


@pytest.mark.parametrize(
    ("members", "nodes", "threads", "budget"),
    [
        (2, (64,), None, (2, 32)),
        (2, (32, 32), None, (2, 32)),
        (1, (32, 32), None, (1, 32, 2)),
        (3, (64,), None, (3, 21)),
        (3, (32, 32), None, (3, 16)),
        (4, (1, 1), None, (2, 1)),
        (4, (30, 2), None, (4, 7)),
        (4, (32, 32), 20, (2, 20)),
        (4, (32, 32), 64, (1, 64)),
        (4, (32, 32), 33, (1, 33)),
        (4, (2,), 8, (1, 2)),
        (1, (2,), 1, (1, 1, 2)),
        (2, (64,), 4, (2, 4, 8)),
        (3, (8,), 1, (3, 1, 2)),
        (2, (24, 24, 24, 24), None, (2, 24, 2)),
    ],
)
def test_a_member_keeps_within_a_node_where_one_is_large_enough(
    members: int, nodes: tuple[int, ...], threads: int | None, budget: tuple[int, ...]
) -> None:
    assert ThreadBudget.share(members, nodes, threads) == ThreadBudget(*budget)
