from collections import Counter
from itertools import combinations, permutations
from math import ceil, comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coserve_training.runs.evaluate import Outputs
from coserve_training.runs.subsets import member_orders, member_subsets, one_in, select


def test_subsets_up_to_eight_members_are_all_there() -> None:
    for members in (1, 2, 4, 8):
        sizes = member_subsets(members)
        everything = {tuple(i for i in range(members) if number >> i & 1) for number in range(1, 2**members)}
        assert {subset for found in sizes.values() for subset in found} == everything
        assert [len(found) for found in sizes.values()] == [comb(members, k) for k in range(1, members + 1)]


def test_beyond_eight_members_a_fixed_choice_of_each_size_is_taken() -> None:
    sizes = member_subsets(16)
    assert [len(found) for found in sizes.values()] == [16] * 15 + [1]
    assert sizes[15] == list(combinations(range(16), 15))
    assert all(len(set(subset)) == size for size, found in sizes.items() for subset in found)
    assert all(len(set(found)) == len(found) for found in sizes.values())
    assert member_subsets(16) == sizes


def test_all_orders_of_up_to_four_members_are_there() -> None:
    for members in (1, 2, 3, 4):
        assert sorted(member_orders(members)) == sorted(permutations(range(members)))


@pytest.mark.parametrize(("members", "orders"), [(5, 20), (8, 24), (16, 16), (30, 30)])
def test_of_more_members_each_goes_first_equally_often(members: int, orders: int) -> None:
    found = member_orders(members)
    assert len(found) == orders
    assert all(sorted(order) == list(range(members)) for order in found)
    assert {found.count(order) for order in found} == {1}
    assert set(Counter(order[0] for order in found).values()) == {orders // members}
    assert member_orders(members) == found


@given(targets=st.lists(st.integers(0, 9), max_size=60), step=st.integers(2, 6))
def test_each_class_has_its_share_of_the_chosen_images(targets: list[int], step: int) -> None:
    chosen = one_in(step, torch.tensor(targets, dtype=torch.long))
    assert chosen.sum() == ceil(len(targets) / step)
    for label in set(targets):
        own = torch.tensor([other == label for other in targets])
        assert abs(int((chosen & own).sum()) - int(own.sum()) / step) < 1


def test_chosen_images_are_counted_class_by_class_in_order() -> None:
    targets = torch.tensor([2, 0, 0, 1, 1, 1, 2, 0, 0, 2])
    assert one_in(2, targets).nonzero()[:, 0].tolist() == [1, 3, 5, 6, 7]
    assert one_in(3, targets).nonzero()[:, 0].tolist() == [1, 5, 8, 9]


def test_outputs_of_chosen_images_keep_their_order() -> None:
    outputs = Outputs(torch.arange(12.0).reshape(2, 3, 2), torch.tensor([1, 0, 1]), "val")
    chosen = select(outputs, torch.tensor([True, False, True]))
    assert chosen.logits.tolist() == [[[0, 1], [4, 5]], [[6, 7], [10, 11]]]
    assert (chosen.targets.tolist(), chosen.split) == ([1, 1], "val")
