import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from onnx import TensorProto
from torch import Tensor, nn
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export.ensemble import Preprocessing
from coserve_export.errors import DescriptionError, NetworkError, ParityError, RepositoryError
from coserve_export.int8 import Int8
from coserve_export.parity import difference_limit
from coserve_export.report import Report
from coserve_export.trained import export_networks
from coserve_training.runs.folder import Run

MakeRun = Callable[..., Run]


class DiffersWhenExported(nn.Module):
    """A network whose ONNX graph computes something else than torch does."""

    def __init__(self, network: nn.Module, offset: float) -> None:
        super().__init__()
        self.network = network
        self.offset = offset

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return logits + self.offset if torch.compiler.is_exporting() else logits


class FixesBatchSize(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) * int(images.shape[0])


@dataclass
class Exported:
    precision: str
    run: Run
    repository: Path
    report: Report


def run_onnx(file: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(["logits"], inputs)[0]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(
    request: pytest.FixtureRequest, make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    run = make_run()
    repository = tmp_path_factory.mktemp("repository")
    return Exported(request.param, run, repository, export_networks(run, repository, precision=request.param))


def test_exported_files_give_the_logits_of_torch(exported: Exported) -> None:
    tolerance = 1e-4 if exported.precision == "fp32" else 0.05
    run = exported.run
    folder = exported.repository
    images = Preprocessing.from_json(run.preprocessing).normalise(run.samples)
    for batch in (1, 3):
        some = images[:batch]
        served = [run_onnx(folder / f"tiny_s2_member{i}/1/model.onnx", {"images": some}) for i in range(2)]
        with torch.inference_mode():
            expected = [member(torch.from_numpy(some)).numpy() for member in run.members]
        np.testing.assert_allclose(served, expected, atol=tolerance)
        mean = run_onnx(folder / "tiny_s2_mean/1/model.onnx", {"logits0": served[0], "logits1": served[1]})
        np.testing.assert_allclose(mean, np.mean(expected, axis=0), atol=tolerance)
    parity = exported.report.parity
    assert parity is not None
    assert parity.images == 40
    assert parity.max_abs_difference <= tolerance
    assert parity.top1_agreement >= 0.97


def test_files_hold_only_the_inference_graph(exported: Exported) -> None:
    file = exported.repository / "tiny_s2_member0/1/model.onnx"
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(a.name == "training_mode" and a.i for node in model.graph.node for a in node.attribute)
    data = file.read_bytes()
    paths = (b".py", b"/home", b"/root", b"/tmp", b"site-packages", str(Path.cwd()).encode())
    assert not any(path in data for path in paths)
    assert len(list(file.parent.iterdir())) == 1


def test_weights_have_the_precision_and_inputs_and_outputs_are_fp32(exported: Exported) -> None:
    model = onnx.load(exported.repository / "tiny_s2_member0/1/model.onnx")
    floats = {tensor.data_type for tensor in model.graph.initializer} - {TensorProto.INT64}
    assert floats == {TensorProto.FLOAT if exported.precision == "fp32" else TensorProto.FLOAT16}
    edges = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in edges} == {TensorProto.FLOAT}


def test_provenance_is_that_of_the_run_plus_the_comparison(exported: Exported) -> None:
    text = (exported.repository / "tiny_s2/config.pbtxt").read_text("utf-8")
    config = text_format.Parse(text, ModelConfig())
    provenance = json.loads(config.parameters["provenance"].string_value)
    assert provenance["network"] == "tiny"
    assert provenance["accuracy"] == {"ensemble": {"top1": 0.5}}
    assert provenance["coserve_version"]
    export = provenance["export"]
    assert (export["precision"], export["images"], export["opset"]) == (exported.precision, 40, 20)
    assert exported.report.parity is not None
    assert export["max_abs_difference"] == exported.report.parity.max_abs_difference
    assert [member["top1_agreement"] for member in export["members"]] == [1, 1]


def test_the_report_as_json(exported: Exported) -> None:
    report = json.loads(json.dumps(exported.report.to_json()))
    assert (report["name"], report["repository"]) == ("tiny_s2", str(exported.repository))
    for member in report["members"]:
        assert member["bytes"] == (exported.repository / member["name"] / "1/model.onnx").stat().st_size
        assert 0 < member["max_abs_difference"] < 0.05
        assert member["top1_agreement"] == 1
    assert report["ensemble"].keys() == {"classes", "max_abs_difference", "top1_agreement", "images"}


def test_a_differing_member_is_refused_and_nothing_written(
    make_run: MakeRun, tiny_network: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    run = make_run(DiffersWhenExported(tiny_network(1), offset=1e-3))
    with pytest.raises(ParityError, match=r"^member 0: .*; nothing was written$") as caught:
        export_networks(run, tmp_path / "repository")
    assert 1e-4 <= caught.value.limit < 1e-3
    assert caught.value.difference == pytest.approx(1e-3, rel=0.1)
    assert list(tmp_path.iterdir()) == []


def test_differences_beyond_10_are_relative() -> None:
    for largest, limit in ((3.0, 1e-4), (10.0, 1e-4), (5000.0, 5e-2)):
        assert difference_limit("fp32", np.array([[1, -largest]], np.float32)) == pytest.approx(limit)


def test_a_fixed_batch_size_is_refused(
    make_run: MakeRun, tiny_network: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(NetworkError, match="member 0: its batch size is fixed at 2"):
        export_networks(make_run(FixesBatchSize(tiny_network(0))), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_not_reported_as_an_export_error(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted import leaves torch without names that its exception handlers then look up."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            try:
                raise KeyboardInterrupt
            except torch.no_such_error:
                pass
        except AttributeError as error:
            raise torch.onnx.OnnxExporterError("it failed") from error

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_networks(make_run(), tmp_path)


def test_activations_that_overflow_fp16_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """The logits are small, and correct in ONNX Runtime on a CPU, which computes in fp32."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8, 5))
    with torch.no_grad():
        layers[0].weight.mul_(3e4)
        layers[2].weight.div_(3e4)
    with pytest.raises(
        NetworkError, match=r"member 0: activations of its layer 0 reach \d+, but fp16 ends at 65504"
    ):
        export_networks(make_run(network), tmp_path, precision="fp16")
    assert list(tmp_path.iterdir()) == []
    export_networks(make_run(network), tmp_path)


def test_logits_that_lose_too_much_precision_in_fp16_are_refused(
    make_run: MakeRun, tiny_network: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    network = tiny_network(0)
    with torch.no_grad():
        network.norm2.weight.mul_(1e3)
        network.norm2.running_var.mul_(1e6)
    with pytest.raises(ParityError, match="member 0: its logits differ"):
        export_networks(make_run(network), tmp_path, precision="fp16")


def test_unsuitable_samples_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    for samples in (
        np.zeros((4, 9, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((4, 8, 8, 3)),
    ):
        with pytest.raises(DescriptionError, match="at least two uint8 samples"):
            export_networks(make_run(samples=samples), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision must be fp32 or fp16, not 'int8'; for int8, pass int8=Int8"),
        ({"precision": "fp16", "int8": Int8("photos")}, "give either int8 or precision fp16"),
    ],
)
def test_invalid_precisions(
    make_run: MakeRun, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DescriptionError, match=message):
        export_networks(make_run(), tmp_path, **options)


def test_an_existing_ensemble_is_refused_before_any_work(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "tiny_s2_member0").mkdir()
    (tmp_path / "tiny_s2_member0/config.pbtxt").touch()
    seen: list[str] = []
    with pytest.raises(RepositoryError, match="--overwrite"):
        export_networks(make_run(), tmp_path, progress=seen.append)
    assert seen == []


class GivesProbabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).softmax(1)


def test_networks_of_a_run_must_give_logits_too(
    make_run: MakeRun, tiny_network: type[nn.Module], tmp_path: Path
) -> None:
    run = make_run(tiny_network(0), GivesProbabilities(tiny_network(1)))
    with pytest.raises(NetworkError, match="member 1: gives probabilities or one-hot classes"):
        export_networks(run, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
