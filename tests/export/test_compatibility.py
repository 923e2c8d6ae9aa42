"""The versions of ONNX that exported networks ask for; tests/compat runs them with old ONNX Runtimes."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coserve_export import NetworkError, Report, existing, export_onnx
from coserve_export.compatibility import OLDEST, RUNTIMES, find_runtime, get_opset, lower_ir_version
from coserve_export.mean_graph import mean_graph
from coserve_export.session import Session

MakeOnnx = Callable[..., Path]
Export = Callable[[Path], tuple[Report, onnx.ModelProto]]
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def export(tmp_path: Path, labels_file: Path) -> Export:
    """Return a function that exports one file and reads the network written."""

    def run(file: Path) -> tuple[Report, onnx.ModelProto]:
        repository = tmp_path / "repository"
        report = export_onnx(
            [file], repository, name="own", labels=labels_file, mean=[0.5] * 3, std=[0.25] * 3, overwrite=True
        )
        return report, onnx.load(repository / "own_member0/1/model.onnx")

    return run


def stamp(file: Path, ir_version: int) -> Path:
    model = onnx.load(file)
    model.ir_version = ir_version
    onnx.save(model, file)
    return file


def logits(model: onnx.ModelProto) -> np.ndarray:
    return Session(model.SerializeToString(), "it").run("scores", {"pixels": IMAGES})


@pytest.mark.parametrize(
    ("opset", "ir_version", "lowered"),
    [
        (13, 8, (13, 8)),
        (17, 9, (17, 9)),
        (17, 10, (17, 9)),
        (20, 13, (20, 9)),
        (23, 11, (20, 9)),
        (25, 13, (20, 9)),
    ],
)
def test_versions_are_lowered_as_far_as_the_content_allows(
    make_onnx: MakeOnnx,
    export: Export,
    opset: int,
    ir_version: int,
    lowered: tuple[int, int],
) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    report, written = export(stamp(make_onnx(opset=opset, weights=weights), ir_version))
    assert (get_opset(written), written.ir_version) == lowered
    assert find_runtime(written) is OLDEST
    assert report.members[0].notes == []
    np.testing.assert_allclose(logits(written), IMAGES.mean((2, 3)) @ weights, atol=1e-6)


def normalising(path: Path, labels: int) -> Path:
    """Write a network with an operator that has no equivalent before opset 23."""
    weights = np.random.default_rng(0).normal(size=(192, labels)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("RMSNormalization", ["flat", "scale"], ["normed"]),
            helper.make_node("MatMul", ["normed", "weights"], ["scores"]),
        ],
        "g",
        [value("pixels", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("scores", TensorProto.FLOAT, ["n", labels])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.ones(192, np.float32), "scale"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=13), path)
    return path


def test_newer_operators_stay_and_the_report_says_what_they_need(export: Export, tmp_path: Path) -> None:
    report, written = export(normalising(tmp_path / "new.onnx", 5))
    assert (get_opset(written), written.ir_version) == (23, 11)
    needs = "needs ONNX Runtime 1.23 or later (Triton 25.08), for opset 23, IR 11"
    assert report.members[0].notes == [needs]
    assert report.to_json()["members"][0]["notes"] == [needs]


def test_a_network_newer_than_this_onnx_runtime_is_lowered(
    make_onnx: MakeOnnx, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldSession(Session):
        def __init__(self, model: bytes, subject: str) -> None:
            if find_runtime(onnx.load_model_from_string(model)) is not OLDEST:
                raise NetworkError(f"{subject}: ONNX Runtime cannot load it")
            super().__init__(model, subject)

    monkeypatch.setattr(existing, "Session", OldSession)
    assert find_runtime(export(make_onnx(opset=23))[1]) is OLDEST
    with pytest.raises(NetworkError, match="cannot load it"):
        export(normalising(make_onnx(), 5))


def test_operators_that_change_the_logits_are_not_lowered(
    make_onnx: MakeOnnx, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_wrongly(model: onnx.ModelProto) -> onnx.ModelProto:
        weights = numpy_helper.to_array(model.graph.initializer[0])
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights * np.float32(1.001), "weights"))
        return changed

    monkeypatch.setattr(existing, "lower_opset", convert_wrongly)
    file = make_onnx()
    assert export(file)[1] == onnx.load(file)


def test_overloaded_functions_keep_their_ir_version() -> None:
    model = mean_graph(2, 5)
    model.ir_version = 10
    model.functions.add(name="f", domain="own", overload="for floats")
    assert not lower_ir_version(model)
    assert model.ir_version == 10


def test_the_mean_asks_for_the_oldest_runtime() -> None:
    assert find_runtime(mean_graph(2, 5, [1.0, 2.0])) is OLDEST


def test_runtimes_are_in_order_and_the_installed_one_is_what_they_say() -> None:
    for older, newer in pairwise(RUNTIMES):
        assert older.ir_version <= newer.ir_version
        assert older.opset < newer.opset
    model = mean_graph(1, 2)
    model.ir_version = 99
    assert find_runtime(model) is None
    with pytest.raises(NetworkError, match="cannot load it"):
        Session(model.SerializeToString(), "it")


def test_one_logit_for_two_classes_becomes_two(
    make_onnx: MakeOnnx, export: Export, labels_file: Path
) -> None:
    """The softmax of 0 and z is the sigmoid of z."""
    labels_file.write_text("ok\ndefect\n")
    weights = np.random.default_rng(0).normal(size=(3, 1)).astype(np.float32)
    report, written = export(make_onnx(weights=weights))
    assert report.members[0].notes == ["gives one logit, which counts as that of 'defect'; that of 'ok' is 0"]
    (output,) = written.graph.output
    two = Session(written.SerializeToString(), "it").run(output.name, {"pixels": IMAGES})
    expected = IMAGES.mean((2, 3)) @ weights
    np.testing.assert_allclose(two, np.hstack([np.zeros_like(expected), expected]), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_one_sigmoid_is_refused(
    make_onnx: MakeOnnx,
    export: Export,
    labels_file: Path,
    scale: float,
) -> None:
    labels_file.write_text("ok\ndefect\n")
    weights = np.random.default_rng(0).normal(size=(3, 1)).astype(np.float32) * scale
    with pytest.raises(NetworkError, match="gives values between 0 and 1"):
        export(make_onnx(weights=weights, last=("Sigmoid",)))
