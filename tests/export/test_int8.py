import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import numpy_helper
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export.deployment import Deployment, Placement
from coserve_export.ensemble import Preprocessing
from coserve_export.errors import (
    AccuracyError,
    DescriptionError,
    ExportError,
    NetworkError,
    ParityError,
    RepositoryError,
)
from coserve_export.existing import export_onnx
from coserve_export.int8 import Int8
from coserve_export.labelled import read_evaluation
from coserve_export.report import Report
from coserve_export.trained import export_networks
from coserve_training.runs.folder import Run

LABELS = ["cat", "dog", "frog", "ship", "naïve plane"]
SIZE = 8
PER_CLASS = 40
Export = Callable[..., Report]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images of a random colour with noise, in random classes."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(3)
    for split in ("train", "test"):
        for label in LABELS:
            (folder / split / label).mkdir(parents=True)
            for index in range(PER_CLASS):
                pixels = random.integers(0, 200, (1, 1, 3)) + random.integers(0, 56, (SIZE, SIZE, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{index}.png")
    return folder


@pytest.fixture
def export(tmp_path: Path, labels_file: Path) -> Export:
    def run(*files: Path, **options: Any) -> Report:
        values = {"name": "own", "mean": [0.5] * 3, "std": [0.25] * 3} | options
        return export_onnx(files, tmp_path / "repository", labels=labels_file, **values)

    return run


def read_provenance(repository: Path, name: str) -> dict[str, Any]:
    config = text_format.Parse((repository / name / "config.pbtxt").read_text("utf-8"), ModelConfig())
    return json.loads(config.parameters["provenance"].string_value)


def test_a_run_in_int8(make_run: Callable[..., Run], photos: Path, tmp_path: Path) -> None:
    options = Int8([photos], [photos], max_accuracy_loss=100)
    report = export_networks(make_run(), tmp_path, int8=options)
    assert report.parity is not None
    assert report.accuracy_loss is not None
    assert report.parity.images == 100, (
        "half of the training images are used for calibration, the other half for comparison"
    )
    for member in report.members:
        model = onnx.load(tmp_path / f"{member.name}/1/model.onnx")
        assert {entry.domain for entry in model.opset_import} == {""}, (
            "operators that Triton's backend supports"
        )
        values = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        kernels = [value for value in values.values() if value.dtype == np.int8 and value.ndim == 4]
        assert len(kernels) == 2
        assert max(np.abs(kernel.astype(int)).max() for kernel in kernels) <= 64, "7 bits"
        assert any(v.shape == (8,) for name, v in values.items() if name.endswith("_scale")), "per channel"
        session = onnxruntime.InferenceSession(tmp_path / f"{member.name}/1/model.onnx")
        images = np.random.default_rng(0).normal(size=(3, 3, SIZE, SIZE)).astype(np.float32)
        (together,) = session.run(["logits"], {"images": images})
        (alone,) = session.run(["logits"], {"images": images[:1]})
        np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    written = read_provenance(tmp_path, "tiny_s2")
    record = written["export"]
    assert (record["precision"], record["calibration_images"], record["opset"]) == ("int8", 100, 20)
    assert record["accuracy_loss"] == {
        "images": 200,
        "fp32": report.accuracy_loss.fp32,
        "int8": report.accuracy_loss.int8,
    }
    assert written["accuracy"]["ensemble"]["top1"] == pytest.approx(report.accuracy_loss.int8, abs=1e-6)
    assert len(written["accuracy"]["subsets"]) == 3
    assert set(written["calibration"]["temperatures"]) == {"1", "2"}


def test_fp32_measurements_are_dropped_from_the_provenance(
    make_run: Callable[..., Run], photos: Path, tmp_path: Path
) -> None:
    run = make_run()
    assert "accuracy" in run.provenance
    report = export_networks(make_run(run.members[0]), tmp_path, name="one", int8=Int8([photos]))
    assert report.accuracy_loss is None
    assert "accuracy_loss" not in str(report.to_json())
    assert "top-1 accuracy in int8 is not measured; --evaluation-data measures it" in report.notes
    written = read_provenance(tmp_path, "one")
    assert "accuracy" not in written
    assert written["network"] == "tiny"


def test_files_in_int8(make_onnx: Callable[..., Path], export: Export, photos: Path, tmp_path: Path) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    report = export(*files, int8=Int8([photos], calibration_images=20), weights=[1.0, 3.0])
    assert report.parity is not None
    assert (report.parity.images, len(report.members)) == (20, 2)
    assert all(member.parity is not None for member in report.members)
    record = read_provenance(tmp_path / "repository", "own")["export"]
    assert (record["precision"], record["calibration_images"]) == ("int8", 20)
    with pytest.raises(NetworkError, match="member 0: int8 needs ONNX opset 13 or later, not 12"):
        export(make_onnx("old.onnx", opset=12), name="old", int8=Int8([photos]))


def test_accuracy_is_measured_for_the_weighted_mean(
    make_onnx: Callable[..., Path], export: Export, photos: Path, tmp_path: Path
) -> None:
    files = [make_onnx("a.onnx"), make_onnx("b.onnx", seed=1)]
    options = Int8([photos], [photos], max_accuracy_loss=100)
    report = export(*files, int8=options, weights=[9.0, 1.0])
    assert report.accuracy_loss is not None
    written = read_provenance(tmp_path / "repository", "own")
    assert written["accuracy"]["ensemble"]["top1"] == pytest.approx(report.accuracy_loss.int8, abs=1e-6)
    assert "subsets" not in written["accuracy"], "subsets and temperatures need equal weights"
    assert "calibration" not in written
    alike = export(*files, int8=options, weights=[2.0, 2.0], name="alike")
    assert alike.accuracy_loss is not None
    assert alike.accuracy_loss.int8 != report.accuracy_loss.int8, "the weights must matter for this test"
    assert "calibration" in read_provenance(tmp_path / "repository", "alike")


def test_losing_too_much_accuracy_is_refused(
    make_onnx: Callable[..., Path], export: Export, photos: Path, tmp_path: Path
) -> None:
    options = Int8([photos], [photos], max_accuracy_loss=-100)
    with pytest.raises(
        AccuracyError, match=r"int8 classifies .* of 200 images correctly, fp32 .* points lost"
    ):
        export(make_onnx(), int8=options)
    assert not (tmp_path / "repository").exists()


def test_a_network_that_8_bits_cannot_represent_is_refused(
    make_onnx: Callable[..., Path], export: Export, photos: Path, tmp_path: Path
) -> None:
    file = make_onnx()
    model = onnx.load(file)
    weights = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(1 + 1e-4 * weights, "weights"))
    onnx.save(model, file)
    with pytest.raises(ParityError, match=r"member 0: int8 changes the class of"):
        export(file, int8=Int8([photos]))
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", "none: no such file or folder"),
        ("renamed", r"classes differ from the ensemble's: missing \['naïve plane'\], unknown \['jet'\]"),
        ("train only", "no test split"),
        ("damaged", "40 of 200 images cannot be decoded: .*; replace them$"),
    ],
)
def test_unusable_images(
    make_onnx: Callable[..., Path], export: Export, photos: Path, tmp_path: Path, change: str, message: str
) -> None:
    folder = tmp_path / change
    for label in LABELS if change != "none" else []:
        for split in ("train", "test") if change != "train only" else ("train",):
            (folder / split).mkdir(parents=True, exist_ok=True)
            name = "jet" if change == "renamed" and label == LABELS[-1] else label
            (folder / split / name).symlink_to(photos / split / label)
    if change == "damaged":
        (folder / "train" / "cat").unlink()
        (folder / "train" / "cat").mkdir()
        for index in range(PER_CLASS):
            (folder / "train" / "cat" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(90))
    with pytest.raises(ExportError, match=message):
        export(make_onnx(), int8=Int8([folder], [folder]))
    assert not (tmp_path / "repository").exists()


def test_int8_needs_calibration_data() -> None:
    with pytest.raises(DescriptionError, match="needs --calibration-data"):
        Int8([])
    with pytest.raises(DescriptionError, match="calibration images must be at least 1, not 0"):
        Int8("photos", calibration_images=0)
    with pytest.raises(DescriptionError, match="--max-accuracy-loss needs --evaluation-data"):
        Int8("photos", max_accuracy_loss=0.3)


def test_classes_follow_the_order_of_the_ensemble(photos: Path) -> None:
    preprocessing = Preprocessing(6, 6, 8, "bilinear", [0.5] * 3, [0.25] * 3)
    backwards = sorted(LABELS, reverse=True)
    images = read_evaluation([photos], backwards, preprocessing)
    for source, target in zip(images.sources, images.targets, strict=True):
        assert Path(source.name).parent.name == backwards[target]
    first, *_ = images.batches()
    assert first.shape == (32, 3, 6, 6)
    with Image.open(photos / images.sources[0].name) as image:
        expected = preprocessing.normalise(np.asarray(image)[None, 1:7, 1:7])
    np.testing.assert_array_equal(first[:1], expected)


ON_GPUS = [
    Deployment(Placement(gpus=(0,))),
    Deployment(cuda={"use_tf32": "0"}),
    Deployment(tensorrt={"precision_mode": "INT8"}),
]


@pytest.mark.parametrize("deployment", ON_GPUS)
def test_int8_is_refused_for_gpus(
    export: Export, make_onnx: Callable[..., Path], photos: Path, deployment: Deployment
) -> None:
    with pytest.raises(DescriptionError, match=r"int8 networks run on the CPU: .* export in fp16 or fp32"):
        export(make_onnx("a.onnx"), int8=Int8([photos]), deployment=deployment)


@pytest.mark.parametrize("deployment", ON_GPUS)
def test_int8_is_refused_as_a_new_version_for_gpus(
    export: Export,
    make_onnx: Callable[..., Path],
    photos: Path,
    deployment: Deployment,
    tmp_path: Path,
    tree: Callable[[Path], dict[str, bytes]],
) -> None:
    export(make_onnx("a.onnx"), deployment=deployment)
    before = tree(tmp_path)
    with pytest.raises(RepositoryError, match=r"runs on GPUs, and int8 networks run on the CPU; .* --name"):
        export(make_onnx("a.onnx"), new_version=True, int8=Int8([photos]))
    assert tree(tmp_path) == before


def test_a_run_in_int8_is_refused_as_a_new_version_for_gpus(
    make_run: Callable[..., Run], photos: Path, tmp_path: Path
) -> None:
    export_networks(make_run(), tmp_path, name="photos", deployment=ON_GPUS[0])
    with pytest.raises(RepositoryError, match="it runs on GPUs, and int8"):
        export_networks(make_run(), tmp_path, name="photos", new_version=True, int8=Int8([photos]))


def test_int8_as_a_new_version_on_the_cpu(
    export: Export, make_onnx: Callable[..., Path], photos: Path
) -> None:
    export(make_onnx("a.onnx"), deployment=Deployment(Placement(cpu=True)))
    report = export(make_onnx("a.onnx"), new_version=True, int8=Int8([photos], calibration_images=20))
    assert report.version == 2
