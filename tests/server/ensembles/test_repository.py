"""Read valid repositories; the errors of broken ones name the file and the fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as triton

from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository
from coserve_server.errors import EngineError, RepositoryError
from coserve_server.machine.cores import Cores
from tests.server import onnx_repository as writer
from tests.server.onnx_repository import LABELS, read_config, write_config, write_repository

Break = Callable[[Path], None]


def read(folder: Path) -> Ensemble:
    return read_repository(folder)["pair"]


def edited(model: str, change: Callable[[triton.ModelConfig], object]) -> Break:
    """Change the parsed config of one model."""

    def apply(folder: Path) -> None:
        config = read_config(folder / model)
        change(config)
        write_config(folder / model, config)

    return apply


def parameter(key: str, value: object) -> Break:
    text = value if isinstance(value, str) else json.dumps(value)
    return edited("pair", lambda config: setattr(config.parameters[key], "string_value", text))


def preprocessing(**changes: object) -> Break:
    return parameter("preprocessing", writer.PREPROCESSING | changes)


def one_class(folder: Path) -> None:
    parameter("labels", ["defect"])(folder)
    edited("pair", lambda c: c.output[0].dims.__setitem__(0, 1))(folder)


def test_everything_is_read(tmp_path: Path) -> None:
    write_repository(tmp_path, weights=[1, 3], provenance={"network": "resnet", "unknown": [1]})
    ensemble = read(tmp_path)
    assert ensemble.version == "1"
    assert ensemble.max_batch_size == 8
    assert ensemble.labels == tuple(LABELS)
    assert ensemble.preprocessing.model_dump() == writer.PREPROCESSING | {
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    }
    assert ensemble.provenance == {"network": "resnet", "unknown": [1]}
    assert [(m.name, m.input_name, m.output_name, m.weight) for m in ensemble.members] == [
        ("pair_member0", "images", "logits", 1),
        ("pair_member1", "images", "logits", 3),
    ]


def test_members_may_name_their_tensors_otherwise(tmp_path: Path) -> None:
    write_repository(tmp_path)

    def rename(config: triton.ModelConfig) -> None:
        step = config.ensemble_scheduling.step[0]
        step.input_map.clear()
        step.input_map["x"] = "images"
        step.output_map.clear()
        step.output_map["y"] = "logits0"

    edited("pair", rename)(tmp_path)
    member = read(tmp_path).members[0]
    assert (member.input_name, member.output_name) == ("x", "y")


def test_several_ensembles_and_stray_folders(tmp_path: Path) -> None:
    write_repository(tmp_path, "pair")
    write_repository(tmp_path, "single", members=1)
    (tmp_path / ".git").mkdir()
    shutil.copytree(tmp_path / "pair", tmp_path / ".pair.building")
    (tmp_path / "notes").mkdir()
    assert list(read_repository(tmp_path)) == ["pair", "single"]


def test_the_highest_version_with_a_model_counts_as_a_number(tmp_path: Path) -> None:
    write_repository(tmp_path)
    member = tmp_path / "pair_member0"
    for version in ("2", "10", "11"):
        (member / version).mkdir()
    for version in ("2", "10"):
        shutil.copy(member / "1" / "model.onnx", member / version)
    assert read(tmp_path).members[0].model_path == member / "10" / "model.onnx"


def test_the_version_policy_and_the_steps_version_count(tmp_path: Path) -> None:
    write_repository(tmp_path)
    for name in ("pair_member0", "pair_member1"):
        for version in ("2", "3"):
            shutil.copytree(tmp_path / name / "1", tmp_path / name / version)
    edited("pair_member0", lambda c: c.version_policy.specific.versions.extend([1, 2]))(tmp_path)
    edited("pair", lambda c: setattr(c.ensemble_scheduling.step[1], "model_version", 1))(tmp_path)
    assert [m.model_path.parent.name for m in read(tmp_path).members] == ["2", "1"]


BROKEN: dict[str, tuple[Break, str]] = {
    "no ensemble": (lambda f: shutil.rmtree(f / "pair"), "has no ensemble"),
    "not a protobuf": (
        lambda f: (f / "pair/config.pbtxt").write_text("name = pair"),
        "pair/config.pbtxt cannot",
    ),
    "not text": (
        lambda f: (f / "pair/config.pbtxt").write_bytes(b"\xff\xfe"),
        "pair/config.pbtxt cannot be read",
    ),
    "unknown field": (
        lambda f: (f / "pair_member0/config.pbtxt").write_text("colour: 1"),
        'no field named "colour"',
    ),
    "a temperature that is none": (
        parameter("provenance", {"calibration": {"temperatures": {"2": 0}}}),
        "parameter provenance.calibration.temperatures.2: Input should be greater than or equal to 0.001",
    ),
    "a temperature of no members": (
        parameter("provenance", {"calibration": {"temperatures": {"0": 1.5}}}),
        "provenance.calibration.temperatures.0",
    ),
    "another name": (edited("pair", lambda c: setattr(c, "name", "x")), "name is 'x', its folder 'pair'"),
    "no batching": (
        edited("pair", lambda c: setattr(c, "max_batch_size", 0)),
        "max_batch_size must be at least 1",
    ),
    "smaller batches": (
        edited("pair_member1", lambda c: setattr(c, "max_batch_size", 2)),
        "'pair_member1': max_batch_size 2 is less than the ensemble's 8",
    ),
    "no preprocessing": (
        edited("pair", lambda c: c.parameters.pop("preprocessing")),
        "preprocessing is missing",
    ),
    "preprocessing not JSON": (
        parameter("preprocessing", "{height: 8}"),
        "parameter preprocessing is not JSON",
    ),
    "half a character": (
        parameter("provenance", '{"network": "\\ud800"}'),
        "parameter provenance is not JSON",
    ),
    "too deep for a reply": (
        parameter("provenance", '{"a": ' + "[" * 400 + "]" * 400 + "}"),
        "parameter provenance is not JSON",
    ),
    "too deep for the parser": (parameter("provenance", "[" * 100_000), "parameter provenance is not JSON"),
    "a number of many digits": (parameter("weights", "9" * 5000), "parameter weights is not JSON"),
    "zero std": (
        preprocessing(std=[1, 0, 1]),
        "parameter preprocessing.std.1: Input should be greater than 0",
    ),
    "two channels": (preprocessing(mean=[0, 0]), "parameter preprocessing.mean.2: Field required"),
    "unknown key": (preprocessing(crop=8), "parameter preprocessing.crop: unknown"),
    "crop too large": (preprocessing(resize_size=4), "resize_size is less than height or width"),
    "size of the input": (
        preprocessing(height=4, width=4, resize_size=4),
        "'images' must be TYPE_FP32 with dims [3, 4, 4]",
    ),
    "labels missing": (edited("pair", lambda c: c.parameters.pop("labels")), "parameter labels is missing"),
    "too few labels": (parameter("labels", ["a", "b"]), "'logits' must be TYPE_FP32 with dims [2]"),
    "one class": (one_class, "parameter labels: an ensemble needs at least two classes, not 1"),
    "no classes": (parameter("labels", []), "needs at least two classes, not 0"),
    "weights too few": (parameter("weights", [1]), "weights has 1 numbers for 2 members"),
    "weights negative": (parameter("weights", [1, -1]), "weights.1: Input should be greater than 0"),
    "weights not finite": (parameter("weights", "[1, NaN]"), "parameter weights.1: Input should be"),
    "two inputs": (edited("pair", lambda c: c.input.append(c.input[0])), "there must be one input, not 2"),
    "wrong type": (
        edited("pair", lambda c: setattr(c.input[0], "data_type", triton.TYPE_UINT8)),
        "input 'images' must be TYPE_FP32",
    ),
    "no version folder": (lambda f: shutil.rmtree(f / "pair/1"), "has no version folder, such as"),
    "member missing": (lambda f: shutil.rmtree(f / "pair_member1"), "step 'pair_member1' has no"),
    "model missing": (
        lambda f: (f / "pair_member1/1/model.onnx").unlink(),
        "no version folder that the ensemble can use has model.onnx",
    ),
    "version missing": (
        edited("pair", lambda c: setattr(c.ensemble_scheduling.step[0], "model_version", 7)),
        "'pair_member0': no version folder",
    ),
    "another backend": (
        edited("pair_member0", lambda c: setattr(c, "backend", "pytorch")),
        "backend must be 'onnxruntime', not 'pytorch'",
    ),
    "a file elsewhere": (
        edited("pair_member0", lambda c: setattr(c, "default_model_filename", "../../../model.onnx")),
        "'../../../model.onnx' is not a file name",
    ),
    "no members": (
        edited("pair", lambda c: c.ensemble_scheduling.step.pop(0) and c.ensemble_scheduling.step.pop(0)),
        "needs a step per member and the mean as last step",
    ),
    "no steps": (edited("pair", lambda c: c.ensemble_scheduling.ClearField("step")), "needs a step per"),
    "cut off": (edited("pair", lambda c: c.ClearField("ensemble_scheduling")), "needs a step per"),
    "two versions of one model": (
        edited("pair", lambda c: setattr(c.ensemble_scheduling.step[1], "model_name", "pair_member0")),
        "2 steps run 'pair_member0', but every member must be a model of its own, whatever its version",
    ),
    "mean lacks a member": (
        edited("pair", lambda c: c.ensemble_scheduling.step[2].input_map.pop("member1")),
        "the last step (pair_mean) must take the output of every other step",
    ),
    "mean gives something else": (
        edited("pair", lambda c: c.ensemble_scheduling.step[2].output_map.update({"mean": "other"})),
        "the last step (pair_mean) must give 'logits'",
    ),
    "chain instead of a fan": (
        edited("pair", lambda c: c.ensemble_scheduling.step[1].input_map.update({"images": "logits0"})),
        "'pair_member1': input_map takes 'logits0', not the ensemble's input 'images'",
    ),
    "two outputs of a member": (
        edited("pair", lambda c: c.ensemble_scheduling.step[0].output_map.update({"more": "more"})),
        "one input_map and one output_map",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_repository_says_what_is_wrong(fault: str, tmp_path: Path) -> None:
    write_repository(tmp_path)
    damage, message = BROKEN[fault]
    damage(tmp_path)
    with pytest.raises(RepositoryError) as caught:
        read_repository(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="nowhere is not a folder"):
        read_repository(tmp_path / "nowhere")


def renamed_tensor(field: str) -> Break:
    return edited(
        "pair",
        lambda c: (
            getattr(c.ensemble_scheduling.step[1], field).clear(),
            getattr(c.ensemble_scheduling.step[1], field).update(
                {"other": "images" if field == "input_map" else "logits1"}
            ),
        ),
    )


def frozen_batch(folder: Path) -> None:
    path = folder / "pair_member1/1/model.onnx"
    model = writer.onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    writer.onnx.save(model, path)


def more_classes(folder: Path) -> None:
    parameter("labels", ["a", "b"])(folder)
    edited("pair", lambda c: c.output[0].dims.__setitem__(0, 2))(folder)


def not_finite(folder: Path) -> None:
    shutil.rmtree(folder)
    writer.write_repository(folder, faults={1: writer.NAN})


UNFIT: dict[str, tuple[Break, str]] = {
    "not ONNX": (lambda f: (f / "pair_member1/1/model.onnx").write_bytes(b"no"), "cannot be loaded"),
    "empty": (lambda f: (f / "pair_member1/1/model.onnx").write_bytes(b""), "cannot be loaded"),
    "input name": (renamed_tensor("input_map"), "has no input 'other' (it has images)"),
    "output name": (renamed_tensor("output_map"), "has no output 'other' (it has logits)"),
    "frozen batch": (frozen_batch, "fails on a batch of 2"),
    "not finite": (not_finite, "gives logits that are not finite"),
    "classes": (more_classes, "gives logits [1, 4], expected [1, 2] (batch, labels)"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_member_that_does_not_fit_is_named_at_start(fault: str, tmp_path: Path) -> None:
    write_repository(tmp_path)
    damage, message = UNFIT[fault]
    damage(tmp_path)
    ensembles = read_repository(tmp_path)
    with pytest.raises(EngineError) as caught:
        OnnxRuntimeEngine(EngineOptions(), Cores(2, None), ensembles)
    assert message in str(caught.value)
    member = "pair_member0" if fault == "classes" else "pair_member1"
    assert f"ensemble pair: member {member}" in str(caught.value)
