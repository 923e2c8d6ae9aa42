import re
from dataclasses import dataclass
from decimal import Decimal

import pytest
import torch
from torch import nn

from coserve_training.counting import DATASETS, Cost, cost, count
from coserve_training.errors import NetworkError
from coserve_training.networks import member_network
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import Classifier, conv3x3
from coserve_training.paper import PaperRow, paper_rows

ROWS = [row for table in DATASETS for row in paper_rows(table)]
IDS = [f"{row.network}-s{row.split}-{row.image_size}px-{row.num_classes}classes-{row.epochs}" for row in ROWS]
# Rows that agree with no count, as their notes explain.
MISPRINTED_PARAMETERS = ("pyramidnet272", 1)
MISPRINTED_MULTIPLY_ADDS = ("efficientnet_b0", 4)


def of_all_members(row: PaperRow) -> Cost:
    member = member_network(row.network, row.split, image_size=row.image_size)
    return count(member, row.num_classes, row.image_size).times(row.split)


def half_a_digit(figure: Decimal) -> float:
    return 0.5 * 10.0 ** int(figure.as_tuple().exponent)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_parameters_agree_with_the_paper(row: PaperRow) -> None:
    tolerance = 0.015 if row.network.startswith("efficientnet") else 0.005
    near = pytest.approx(
        float(row.parameters), abs=tolerance * float(row.parameters) + half_a_digit(row.parameters)
    )
    counted = of_all_members(row).parameters / 1e6
    if (row.network, row.split) == MISPRINTED_PARAMETERS and row.num_classes == 100:
        assert counted == pytest.approx(26.289, abs=0.001)
        assert "misprint of 26.3" in row.note
    else:
        assert counted == near


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_multiply_adds_agree_with_the_paper(row: PaperRow) -> None:
    counted = of_all_members(row).multiply_adds / 1e9
    if (row.network, row.split) == MISPRINTED_MULTIPLY_ADDS:
        assert counted == pytest.approx(0.2592, abs=1e-4)
        assert "0.26" in row.note
    elif row.multiply_adds is not None:
        assert counted == pytest.approx(float(row.multiply_adds), rel=0.03)


def test_the_paper_counts_some_rows_with_ten_classes() -> None:
    for row in paper_rows("cifar100"):
        if row.num_classes == 10:
            more = cost(row.network, row.split, 100, 32).total.parameters - of_all_members(row).parameters
            assert f"have {more / 1e6:.3f} M more" in row.note


def test_every_table_has_its_rows() -> None:
    counts = {table: len(paper_rows(table)) for table in DATASETS}
    assert counts == {"cifar10": 4, "cifar100": 39, "imagenet": 14}


@dataclass(frozen=True)
class TinyConfig(NetworkConfig):
    pattern = "tiny"

    @classmethod
    def parse(cls, name: str) -> None:
        raise NotImplementedError

    def divide(self, split: int) -> "TinyConfig":
        raise NotImplementedError

    def build(self, num_classes: int) -> nn.Module:
        return nn.Sequential(conv3x3(3, 8), nn.BatchNorm2d(8), nn.ReLU(), Classifier(8, num_classes))

    def __str__(self) -> str:
        return "tiny"


def test_counts_of_a_tiny_network() -> None:
    positions = 16 * 16
    convolution = 9 * 3 * 8 * positions
    norm = 2 * 8 * positions
    pool = 8 * positions
    linear = 8 * 5
    parameters = 9 * 3 * 8 + 2 * 8 + 8 * 5 + 5
    assert count(TinyConfig(), 5, 16) == Cost(parameters, convolution + norm + pool + linear)


def test_counting_allocates_no_weights() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    count(TinyConfig(), 6, 16)
    assert torch.equal(before, torch.random.get_rng_state())


def test_undivided_costs_stand_beside_the_members() -> None:
    divided = cost("wide_resnet28_10", 4, 10, 32)
    assert divided.member_network == "wide_resnet28_5"
    assert divided.undivided == cost("wide_resnet28_10", 1, 10, 32).total
    assert divided.total.parameters == 4 * divided.member.parameters


def test_multiply_adds_grow_with_the_square_of_the_image() -> None:
    small, large = (cost("resnet110", 1, 10, size).total.multiply_adds for size in (32, 64))
    assert large == pytest.approx(4 * small, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("resnet100", 1, "resnet100: depth must be 9n + 2"),
        ("resnet2", 1, "depth must be 9n + 2"),
        ("wide_resnet27_10", 2, "wide_resnet27_10: depth must be 6n + 4"),
        ("wide_resnet4_10", 1, "depth must be 6n + 4"),
        ("wide_resnet28_0", 1, "widening factor must be at least 1"),
        ("wide_resnet28", 1, "unknown network 'wide_resnet28', the nearest is wide_resnet28_10: wide_res"),
        ("efficientnet", 1, "unknown network 'efficientnet'"),
        ("efficientnet_b9", 1, "efficientnet_b9: variants are b0 to b8"),
        ("resnexst50_4x16d", 3, "resnexst50_4x16d: split must divide its 4 groups, not 3"),
        ("resnexst50_0x16d", 1, "groups must be at least 1, and their width even"),
        ("resnexst50_8x17d", 1, "groups must be at least 1, and their width even"),
        ("efficientnet_b0", 3, "efficientnet_b0: split must be one of 1, 2, 4, not 3"),
        ("resnext29_8x64d_narrow_stem", 1, "only the ImageNet networks (50, 101, 152) have a narrow stem"),
        ("vgg16", 1, "unknown network 'vgg16'; coserve networks lists examples"),
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
