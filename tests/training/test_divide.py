import re

import pytest

from coserve_training.divide import DATASETS, divide
from coserve_training.errors import NetworkError
from coserve_training.networks import member_network

# Parameters (millions) and multiply-adds (billions) of all members: the paper's CIFAR-100 table.
PAPER = [
    ("resnet110", (1.17, 1.33, 1.21), (0.17, 0.20, 0.18)),
    ("resnet164", (1.73, 1.96, 1.78), (0.25, 0.29, 0.26)),
    ("wide_resnet16_8", (11.0, 12.4, 11.1), (1.55, 1.75, 1.58)),
    ("wide_resnet28_10", (36.5, 35.8, 36.7), (5.25, 5.16, 5.28)),
    ("wide_resnet40_10", (55.9, 54.8, 56.0), (8.08, 7.94, 8.12)),
]
ROWS = [
    (name, split, parameters[i], multiply_adds[i])
    for name, parameters, multiply_adds in PAPER
    for i, split in enumerate((1, 2, 4))
]


@pytest.mark.parametrize(("name", "split", "parameters", "multiply_adds"), ROWS)
def test_counts_agree_with_the_paper(name: str, split: int, parameters: float, multiply_adds: float) -> None:
    division = divide(name, split, *DATASETS["cifar100"])
    rounding = 0.005 if parameters < 10 else 0.05
    assert division.total.parameters / 1e6 == pytest.approx(parameters, rel=0.005, abs=rounding)
    # The paper counts batch norm and activations in some rows, and prints two decimals.
    assert multiply_adds * 0.97 - 0.01 <= division.total.multiply_adds / 1e9 <= multiply_adds + 0.005


def test_undivided_costs_stand_beside_the_members() -> None:
    division = divide("wide_resnet28_10", 4, 10, 32)
    assert division.member_network == "wide_resnet28_5"
    assert division.undivided == divide("wide_resnet28_10", 1, 10, 32).total
    assert division.total.parameters == 4 * division.member.parameters


def test_multiply_adds_grow_with_the_square_of_the_image() -> None:
    small, large = (divide("resnet110", 1, 10, size).total.multiply_adds for size in (32, 64))
    assert large == pytest.approx(4 * small, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("resnet100", 1, "resnet100: depth must be 9n + 2"),
        ("resnet2", 1, "depth must be 9n + 2"),
        ("wide_resnet27_10", 2, "wide_resnet27_10: depth must be 6n + 4"),
        ("wide_resnet4_10", 1, "depth must be 6n + 4"),
        ("wide_resnet28_0", 1, "widening factor must be at least 1"),
        ("wide_resnet28", 1, "unknown network 'wide_resnet28'; known are resnet"),
        ("vgg16", 1, "unknown network 'vgg16'"),
        ("resnet110", 3, "resnet110: split must be one of 1, 2, 4, 8, 16, not 3"),
        ("resnet110", 0, "split must be at least 1, not 0"),
        ("wide_resnet28_10", -2, "split must be at least 1, not -2"),
    ],
)
def test_impossible_networks_are_named(name: str, split: int, message: str) -> None:
    with pytest.raises(NetworkError, match=re.escape(message)):
        member_network(name, split)
