from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from coserve_cli.main import app
from coserve_export.ensemble import Description, Preprocessing
from coserve_training.config import TrainConfig
from coserve_training.networks import member_network
from coserve_training.runs.folder import Description as RunDescription
from coserve_training.runs.folder import Run

SIZE = 8
CLASSES = 5
LABELS = ["cat", "dog", "frog", "ship", "naïve plane"]


class TinyNetwork(nn.Module):
    """A network with batch norms before and after convolutions, a shortcut and random scales everywhere."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.classifier = nn.Linear(8, CLASSES)
        for norm in (self.norm1, self.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(images)))
        x = x + self.conv(torch.relu(self.norm2(x)))
        return 5 * self.classifier(x.mean((2, 3)))


@pytest.fixture(scope="session")
def preprocessing() -> dict[str, object]:
    return {
        "height": SIZE,
        "width": SIZE,
        "resize_size": SIZE,
        "interpolation": "bilinear",
        "mean": [0.49, 0.48, 0.44],
        "std": [0.2, 0.2, 0.25],
    }


@pytest.fixture(scope="session")
def make_run(preprocessing: dict[str, object]) -> Callable[..., Run]:
    def make(*members: nn.Module, **changes: object) -> Run:
        values = {
            "members": [member.eval() for member in members]
            or [TinyNetwork(0).eval(), TinyNetwork(1).eval()],
            "labels": LABELS,
            "preprocessing": preprocessing,
            "provenance": {"network": "tiny", "split": 2, "accuracy": {"ensemble": {"top1": 0.5}}},
            "samples": np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8),
        }
        return Run(**(values | changes))

    return make


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run folder as training does, with networks whose batch norms are random."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    config = TrainConfig(data=("images",), network="wide_resnet10_1", split=2, image_size=16)
    labels = ["blue", "green", "red"]
    RunDescription(config, labels, [0.5] * 3, [0.25] * 3, "images").write(folder)
    torch.manual_seed(0)
    state = {}
    for index in range(2):
        member = member_network("wide_resnet10_1", 2).build(len(labels))
        for key, value in member.state_dict().items():
            random = (
                value + torch.rand(value.shape) if value.is_floating_point() and value.ndim == 1 else value
            )
            state[f"members.{index}.{key}"] = random
    torch.save({"state_dict": state, "epoch": 3}, folder / "last.ckpt")
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", images=images)
    return folder


@pytest.fixture(scope="session")
def tiny_network() -> type[TinyNetwork]:
    return TinyNetwork


@pytest.fixture(scope="session")
def describe(preprocessing: dict[str, object]) -> Callable[..., Description]:
    def make(name: str = "e", num_members: int = 2, **changes: object) -> Description:
        values = {"labels": LABELS, "max_batch_size": 16} | changes
        return Description(name, num_members, preprocessing=Preprocessing.from_json(preprocessing), **values)

    return make


@pytest.fixture
def make_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an ONNX file such as other tools might: pooling and a matrix product."""

    def make(
        name: str = "a.onnx",
        *,
        seed: int = 0,
        shape: tuple[int | str, ...] = ("n", 3, SIZE, SIZE),
        element: int = TensorProto.FLOAT,
        last: tuple[str, ...] = (),
        outputs: tuple[str, ...] = ("scores",),
        training: bool = False,
        scale: float = 1.0,
        weights: npt.NDArray[np.float32] | None = None,
        opset: int = 17,
    ) -> Path:
        channels = shape[1] if isinstance(shape[1], int) else 3
        if weights is None:
            weights = np.random.default_rng(seed).normal(size=(channels, CLASSES)).astype(np.float32) * scale
        initializers = [numpy_helper.from_array(weights, "weights")]
        products = [*(f"products{i}" for i in range(len(last))), outputs[0]]
        nodes = [
            helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("GlobalAveragePool", ["cast"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], products[:1]),
        ]
        nodes += [helper.make_node(step, [products[i]], [products[i + 1]]) for i, step in enumerate(last)]
        nodes += [helper.make_node("Identity", ["flat"], [output]) for output in outputs[1:]]
        if training:
            vectors = [numpy_helper.from_array(np.ones(3, np.float32), f"v{i}") for i in range(4)]
            names = [vector.name for vector in vectors]
            initializers += vectors
            nodes[1].input[0] = "normed"
            norm = helper.make_node(
                "BatchNormalization", ["cast", *names], ["normed", "m", "v"], name="bn", training_mode=1
            )
            nodes.insert(1, norm)
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [value("pixels", element, shape)],
            [
                value(output, TensorProto.FLOAT, [shape[0], weights.shape[1] if i == 0 else 3])
                for i, output in enumerate(outputs)
            ],
            initializers,
        )
        path = tmp_path / name
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path
        )
        return path

    return make


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in LABELS), "utf-8")
    return path


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads all files below a folder, by relative path."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    return read


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository that does not exist yet, nor its parent."""
    return tmp_path / "parent" / "repository"


@pytest.fixture
def coserve(tmp_path: Path) -> Callable[..., Result]:
    """Return a function that calls `coserve export` into `tmp_path / "repository"`."""

    def run(*arguments: object) -> Result:
        repository = ["--repository", str(tmp_path / "repository")]
        return CliRunner().invoke(app, ["export", *map(str, arguments), *repository])

    return run
