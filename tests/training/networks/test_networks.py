import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from coserve_cli.main import app
from coserve_export.onnx_export import export_network
from coserve_training.errors import NetworkError
from coserve_training.networks import FAMILIES, families, member_network, parse_network
from coserve_training.networks.bottleneck import IMAGENET_BLOCKS, Bottleneck
from coserve_training.networks.config import NetworkConfig
from coserve_training.networks.layers import DropPath
from coserve_training.networks.wide_resnet import BasicBlock


@pytest.mark.parametrize("name", ["resnet20", "se_resnet20", "resnext29_4x4d", "wide_resnet10_2"])
@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 33, 40])
def test_images_of_any_size_become_logits(
    name: str, split: int, size: int, makes_logits: Callable[..., None]
) -> None:
    makes_logits(member_network(name, split).build(num_classes=7), size)


@pytest.mark.parametrize(("name", "block", "last_norm"), [
    ("resnet20", Bottleneck, "norm3"),
    ("wide_resnet10_2", BasicBlock, "norm2"),
])  # fmt: skip
def test_residual_branches_start_at_zero(name: str, block: type, last_norm: str) -> None:
    undivided = member_network(name, 1).build(10)
    blocks = [module for module in undivided.modules() if isinstance(module, block)]
    assert blocks
    assert all((getattr(module, last_norm).weight == 0).all() for module in blocks)


def test_members_differ_from_the_start() -> None:
    first, second = (member_network("wide_resnet10_2", 2).build(10) for _ in range(2))
    assert not torch.equal(first[0][0].weight, second[0][0].weight)


@pytest.mark.parametrize("name", ["resnet20", "resnext29_4x4d", "wide_resnet16_2", "wide_resnet50_2"])
def test_members_drop_branches_and_features_by_the_root_of_their_number(name: str) -> None:
    with torch.device("meta"):
        member = member_network(name, 4, dropout=0.2, drop_path=0.4).build(10)
    rates = [module.probability for module in member.modules() if isinstance(module, DropPath)]
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.2 / len(rates))
    assert [module.p for module in member.modules() if isinstance(module, nn.Dropout)] == [0.1]


def test_a_dropped_branch_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    dropped = drop(torch.ones(10_000, 2, 1, 1))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (dropped[:, 0] == dropped[:, 1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(2, 1, 1, 1)), torch.ones(2, 1, 1, 1))


@pytest.fixture
def shallow_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep one bottleneck in each of two stages, which together have every type of layer."""
    monkeypatch.setitem(IMAGENET_BLOCKS, 50, (1, 1))


# Every type of block, stem and shortcut once. The other families have test files of their own.
SMALLEST = [
    ("se_resnet11", 16), ("resnext11_4x4d", 16), ("wide_resnet10_1", 16), ("wide_resnet50_2", 33),
    ("se_resnet50", 36), ("resnexst50_4x4d", 33),
]  # fmt: skip


@pytest.mark.usefixtures("shallow_imagenet")
def test_split_attention_has_any_number_of_groups(makes_logits: Callable[..., None]) -> None:
    makes_logits(member_network("resnexst50_3x6d", 1).build(num_classes=7), 33)


class Together(nn.ModuleList):
    """Several networks' logits side by side, because one export costs less than three."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([network(images) for network in self], 1)


@pytest.mark.parametrize(("name", "size"), SMALLEST)
@pytest.mark.usefixtures("shallow_imagenet")
def test_onnx_computes_the_same_for_every_split(
    name: str, size: int, onnx_difference: Callable[..., float]
) -> None:
    members = Together(member_network(name, split).build(7) for split in (1, 2, 4))
    assert onnx_difference(members, size) < 1e-4


def test_onnx_computes_the_same_at_depth(onnx_difference: Callable[..., float]) -> None:
    assert onnx_difference(member_network("resnet56", 2).build(7), 16) < 1e-4


@pytest.mark.parametrize(("name", "size"), SMALLEST)
@pytest.mark.usefixtures("shallow_imagenet")
def test_a_step_in_bf16(name: str, size: int, train_a_step: Callable[..., None]) -> None:
    fresh = member_network(name, 2).build(7)
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # no gradient reaches a branch that ends in zeros
    train_a_step(fresh, size)


def natural_images(count: int, size: int) -> Tensor:
    """Draw images with a photograph's spectrum and correlated channels."""
    random = torch.Generator().manual_seed(0)
    frequencies = torch.fft.fftfreq(size)
    amplitude = 1 / (frequencies[:, None] ** 2 + frequencies[None] ** 2).sqrt().clamp(min=1 / size)
    grey, colour = (torch.randn(count, c, size, size, generator=random) for c in (1, 3))
    images = torch.fft.ifft2(torch.fft.fft2(grey + 0.3 * colour) * amplitude).real
    return (images - images.mean()) / images.std()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: on busy cores, several threads make such small networks several times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "split", "size"), [
    ("resnet11", 4, 8), ("se_resnet11", 4, 8), ("resnext11_4x4d", 4, 8), ("wide_resnet10_1", 1, 8),
    ("wide_resnet50_2", 4, 32), ("resnexst50_4x16d", 4, 32), ("densenet16_12", 1, 8),
    ("pyramidnet11_16", 1, 8), ("shake_resnet8_2x96d", 8, 8), ("efficientnet_b0", 4, 8),
])  # fmt: skip
@pytest.mark.usefixtures("shallow_imagenet", "shallow_efficientnet", "one_thread")
def test_every_family_learns_a_hundred_images_by_heart(name: str, split: int, size: int) -> None:
    torch.manual_seed(0)
    images = natural_images(100, size)
    targets = torch.arange(100) % 10
    member = member_network(name, split, image_size=size, dropout=0.0, drop_path=0.0).build(10).train()
    optimizer = torch.optim.SGD(member.parameters(), 0.1, momentum=0.9, nesterov=True)
    for _ in range(150):
        loss = F.cross_entropy(member(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    assert loss < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_families_know_their_examples(family: type[NetworkConfig]) -> None:
    examples = family.cifar_examples + family.imagenet_examples
    assert examples
    for name in examples:
        assert isinstance(parse_network(name), family)
        assert str(parse_network(name)) == name
        assert str(member_network(name, 1)) == name


@pytest.fixture
def documented_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the package that docs/reference/networks.md describes, as pip would."""
    page = (Path(__file__).parents[3] / "docs/reference/networks.md").read_text("utf-8")
    python, toml = (re.search(f"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "toml"))
    assert python
    assert toml
    (tmp_path / "plain_network.py").write_text(python[1])
    information = tmp_path / "plain_network-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-network\nVersion: 1.0\n")
    group, line = re.search(r'entry-points\."(.*?)"\]\n(.*)\n', toml[1]).groups()  # type: ignore[union-attr]
    (information / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    families.cache_clear()
    yield information
    sys.modules.pop("plain_network", None)
    families.cache_clear()


@pytest.mark.usefixtures("documented_package")
def test_a_network_of_ones_own_is_one_file_and_one_line(onnx_difference: Callable[..., float]) -> None:
    shown = CliRunner().invoke(app, ["divide", "plain64", "--split", "4", "--json"])
    assert json.loads(shown.stdout)["member_network"] == "plain32"
    assert json.loads(shown.stdout)["member_parameters"] == 288_746
    member = member_network("plain8", 4, dropout=0.2).build(7)
    assert [module.p for module in member.modules() if isinstance(module, nn.Dropout)] == [0.1]
    assert onnx_difference(member, 16) < 1e-4
    with pytest.raises(NetworkError, match="plain1: too narrow for 4 members"):
        member_network("plain1", 4)


def test_an_entry_point_that_cannot_be_loaded_is_named(documented_package: Path) -> None:
    (documented_package / "entry_points.txt").write_text(
        "[coserve.networks]\nplain = plain_network:Missing\n"
    )
    shown = CliRunner().invoke(app, ["divide", "resnet110"])
    assert shown.exit_code == 1
    assert shown.stderr.startswith("error: cannot load the network plain = plain_network:Missing: ")


@pytest.mark.parametrize(("size", "rounds_up"), [(16, 0), (18, 1)])
def test_only_odd_resolutions_are_rounded_up_in_onnx(size: int, rounds_up: int) -> None:
    # ONNX Runtime's fast average pool cannot round up.
    graph = export_network(member_network("wide_resnet10_1", 1).build(7).eval(), (size, size)).graph
    pools = [node for node in graph.node if node.op_type == "AveragePool"]
    modes = [a.i for pool in pools for a in pool.attribute if a.name == "ceil_mode"]
    assert modes == [0, rounds_up]
