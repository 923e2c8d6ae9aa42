import re

import pytest

from coserve_training.divide import DATASETS, divide
from coserve_training.errors import NetworkError
from coserve_training.networks import member_network

# Parameters (millions) and multiply-adds (billions) of all members, for S = 1, 2 and 4: the paper's tables.
CIFAR100 = {
    "resnet110": [(1.17, 0.17), (1.33, 0.20), (1.21, 0.18)],
    "resnet164": [(1.73, 0.25), (1.96, 0.29), (1.78, 0.26)],
    "se_resnet110": [(1.69, 0.17)],
    "se_resnet164": [(2.51, 0.26)],
    "wide_resnet16_8": [(11.0, 1.55), (12.4, 1.75), (11.1, 1.58)],
    "resnext29_8x64d": [(34.5, 5.41), (35.4, 5.50), (36.9, 5.67)],
    "wide_resnet28_10": [(36.5, 5.25), (35.8, 5.16), (36.7, 5.28)],
    "wide_resnet40_10": [(55.9, 8.08), (54.8, 7.94), (56.0, 8.12)],
}
IMAGENET = {
    "resnet50": [(25.7, 5.5)],
    "resnet101": [(44.8, 9.2)],
    "wide_resnet50_2": [(68.9, 12.8), (51.4, 10.9)],
    "wide_resnet50_3": [(135.0, 23.8), (138.0, 25.6)],
    "resnext101_64x4d": [(83.6, 16.9), (88.6, 18.8)],
}
ROWS = [
    (dataset, name, 2**index, *counts)
    for dataset, table in (("cifar100", CIFAR100), ("imagenet", IMAGENET))
    for name, row in table.items()
    for index, counts in enumerate(row)
]


@pytest.mark.parametrize(("dataset", "name", "split", "parameters", "multiply_adds"), ROWS)
def test_counts_agree_with_the_paper(
    dataset: str, name: str, split: int, parameters: float, multiply_adds: float
) -> None:
    division = divide(name, split, *DATASETS[dataset])
    rounding = 0.005 if parameters < 10 else 0.05
    assert division.total.parameters / 1e6 == pytest.approx(parameters, rel=0.005, abs=rounding)
    # The paper counts batch norm and activations in some rows, and prints two or three digits.
    rounding = 0.05 if dataset == "imagenet" else 0.01
    counted = division.total.multiply_adds / 1e9
    assert multiply_adds * 0.97 - rounding <= counted <= multiply_adds + rounding


def test_the_paper_counts_se_resnext_at_320_pixels() -> None:
    total = divide("se_resnext101_64x4d", 2, 1000, 320).total
    assert total.parameters == pytest.approx(98.0e6, rel=0.005)
    assert total.multiply_adds == pytest.approx(38.2e9, rel=0.03)


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
        ("wide_resnet28", 1, "unknown network 'wide_resnet28'; known are [se_]resnet"),
        ("vgg16", 1, "unknown network 'vgg16'"),
        ("resnet110", 3, "resnet110: split must be one of 1, 2, 4, 8, 16, not 3"),
        ("resnext29_8x64d", 3, "resnext29_8x64d: split must divide its 8 groups, not 3"),
        ("resnext30_8x64d", 1, "resnext30_8x64d: depth must be 9n + 2"),
        ("resnext29_0x64d", 1, "groups and their width must be at least 1"),
        ("wide_resnet50_2", 8, "wide_resnet50_2: split must be one of 1, 2, 4, not 8"),
        ("wide_resnet50_4", 2, "wide_resnet50_4: two members are defined for factors 2 and 3, not 4"),
        ("resnet50", 16, "resnet50: split must be one of 1, 2, 4, 8, not 16"),
        ("resnet110", 0, "split must be at least 1, not 0"),
        ("wide_resnet28_10", -2, "split must be at least 1, not -2"),
    ],
)
def test_impossible_networks_are_named(name: str, split: int, message: str) -> None:
    with pytest.raises(NetworkError, match=re.escape(message)):
        member_network(name, split)
