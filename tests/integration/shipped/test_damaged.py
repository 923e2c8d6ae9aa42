"""Damaged copies of a shipped ensemble: which check of the photographs notices each damage."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import numpy_helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_client import Client
from tests.integration.conftest import Serve
from tests.integration.shipped.checks import check_accuracy, check_colours, check_labels, check_members
from tests.integration.shipped.photographs import Photograph, classify, read_photographs

REPOSITORY = Path(__file__).parents[3] / "model_repository"

Parameters = dict[str, Any]
"""The ensemble's labels and preprocessing."""


def smallest() -> str:
    """Return the shipped ensemble of several members that has the fewest bytes."""
    sizes = {}
    for file in REPOSITORY.glob("*/labels.txt"):
        name = file.parent.name
        members = list(REPOSITORY.glob(f"{name}_member*/*/model.onnx"))
        if len(members) > 1:
            sizes[name] = sum(member.stat().st_size for member in members)
    return min(sizes, key=sizes.__getitem__)


def exchange_labels(parameters: Parameters) -> None:
    labels = parameters["labels"]
    one = labels.index("cat")
    other = labels.index("dog")
    labels[one], labels[other] = labels[other], labels[one]


def rotate_labels(parameters: Parameters) -> None:
    labels = parameters["labels"]
    labels.append(labels.pop(0))


def shift_mean(by: float) -> Callable[[Parameters], None]:
    def shift(parameters: Parameters) -> None:
        how = parameters["preprocessing"]
        how["mean"] = [mean + by for mean in how["mean"]]

    return shift


def scale_std(by: float) -> Callable[[Parameters], None]:
    def scale(parameters: Parameters) -> None:
        how = parameters["preprocessing"]
        how["std"] = [std * by for std in how["std"]]

    return scale


def exchange_red_and_blue(network: onnx.ModelProto) -> None:
    """Exchange the channels that the first convolution reads."""
    (stem,) = (node for node in network.graph.node if "images" in node.input)
    _change(network, stem.input[1], lambda weights: weights[:, ::-1])


def zero_last_layer(network: onnx.ModelProto) -> None:
    (last,) = (node for node in network.graph.node if "logits" in node.output)
    for name in last.input[1:]:
        _change(network, name, np.zeros_like)


def _change(network: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = (tensor for tensor in network.graph.initializer if tensor.name == name)
    changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


IN_PARAMETERS: dict[str, Callable[[Parameters], None]] = {
    "cat_is_dog": exchange_labels,
    "rotated_labels": rotate_labels,
    "high_mean": shift_mean(0.5),
    "low_mean": shift_mean(-0.75),
    "large_std": scale_std(2),
    "small_std": scale_std(0.5),
}
IN_EVERY_MEMBER = {"bgr": exchange_red_and_blue}
IN_THE_LAST_MEMBER = {"zeroed": zero_last_layer}


def copy_ensemble(name: str, copy: str, repository: Path) -> list[Path]:
    """Copy an ensemble under another name, and return the files of its members."""
    for source in (REPOSITORY / name, *REPOSITORY.glob(f"{name}_*")):
        target = repository / source.name.replace(name, copy)
        shutil.copytree(source, target)
        config = target / "config.pbtxt"
        config.write_text(config.read_text("utf-8").replace(f'"{name}', f'"{copy}'), "utf-8")
    (repository / copy / "1").mkdir(exist_ok=True)
    return sorted(repository.glob(f"{copy}_member*/*/model.onnx"))


def damage_parameters(file: Path, damage: Callable[[Parameters], None]) -> None:
    config = text_format.Parse(file.read_text("utf-8"), ModelConfig())
    parameters = {key: json.loads(config.parameters[key].string_value) for key in ("labels", "preprocessing")}
    damage(parameters)
    for key, value in parameters.items():
        config.parameters[key].string_value = json.dumps(value)
    file.write_text(text_format.MessageToString(config), "utf-8")


def damage_network(file: Path, damage: Callable[[onnx.ModelProto], None]) -> None:
    network = onnx.load(file)
    damage(network)
    onnx.save(network, file)


@pytest.fixture(scope="module")
def client(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    repository = tmp_path_factory.mktemp("damaged")
    name = smallest()
    for copy, in_parameters in IN_PARAMETERS.items():
        copy_ensemble(name, copy, repository)
        damage_parameters(repository / copy / "config.pbtxt", in_parameters)
    for copy, in_network in (IN_EVERY_MEMBER | IN_THE_LAST_MEMBER).items():
        members = copy_ensemble(name, copy, repository)
        for file in members if copy in IN_EVERY_MEMBER else members[-1:]:
            damage_network(file, in_network)
    with Client(serve(repository).url) as client:
        yield client


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    return read_photographs()


@pytest.mark.parametrize("damaged", ["rotated_labels", "high_mean", "low_mean"])
def test_accuracy_suffers(client: Client, photographs: list[Photograph], damaged: str) -> None:
    answers = classify(client, damaged, photographs)
    with pytest.raises(AssertionError, match="the ensemble is right"):
        check_accuracy(answers, client.model(damaged).provenance)


def test_exchanged_labels_are_noticed(client: Client, photographs: list[Photograph]) -> None:
    with pytest.raises(AssertionError, match="cat and dog"):
        check_labels(classify(client, "cat_is_dog", photographs))


def test_a_damaged_member_is_noticed(client: Client, photographs: list[Photograph]) -> None:
    """The ensemble may still be right often enough, thanks to its other members."""
    answers = classify(client, "zeroed", photographs)
    with pytest.raises(AssertionError, match=r"member \d is right 10 times of 100"):
        check_members(answers, client.model("zeroed").provenance)


@pytest.mark.parametrize(
    ("damaged", "undone_by"),
    [
        ("bgr", "red and blue exchanged"),
        ("large_std", "twice the contrast"),
        ("small_std", "half the contrast"),
    ],
)
def test_wrong_colours_are_noticed(
    client: Client, photographs: list[Photograph], damaged: str, undone_by: str
) -> None:
    with pytest.raises(AssertionError, match=f"{undone_by}.*: likelier"):
        check_colours(client, damaged, photographs)
