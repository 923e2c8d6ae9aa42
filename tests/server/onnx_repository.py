"""Writes small model repositories in the contract's layout, with real ONNX members, sound or faulty."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as triton

NCHW = triton.ModelInput.FORMAT_NCHW
LABELS = ["cat", "dog", "frog", "ship"]
PREPROCESSING = {
    "height": 8,
    "width": 8,
    "resize_size": 8,
    "interpolation": "bilinear",
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}
NAN = "nan"
NOT_FINITE = "not finite"
FAILS = "fails"
HANGS = "hangs"
BUSY = "busy"
SHAPE = "shape"
"""Faults of a member: NaN logits always; on images that are not black NaN logits, an error, an endless loop,
one step of some seconds that cannot be interrupted, or twice as many classes."""


def write_repository(
    folder: Path,
    name: str = "pair",
    *,
    members: int = 2,
    size: int = 8,
    channels: int = 8,
    depth: int = 1,
    max_batch_size: int = 8,
    faults: dict[int, str] | None = None,
    weights: list[float] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Add an ensemble to the repository in `folder`; `faults` maps a member's index to its fault."""
    for index in range(members):
        model = network(index, size, channels, depth, (faults or {}).get(index))
        write_member(folder / f"{name}_member{index}", model, size, max_batch_size)
    shares = np.array(weights or [1.0] * members)
    write_mean(folder / f"{name}_mean", shares / shares.sum(), max_batch_size)
    parameters = {"preprocessing": PREPROCESSING | {"height": size, "width": size, "resize_size": size}}
    parameters |= {"labels": LABELS, "provenance": provenance or {"network": "test"}}
    if weights:
        parameters["weights"] = weights
    write_ensemble(folder / name, members, size, max_batch_size, parameters)
    return folder


def add_version(
    folder: Path,
    name: str,
    version: int,
    *,
    faults: dict[int, str] | None = None,
    cut_off: int | None = None,
    keep: bool = False,
) -> None:
    """Put a version with other weights beside those there are, as an export does: its configuration last.

    `cut_off` is the index of a member whose file lacks its end; `keep` leaves the configuration that there
    was in the version folder it describes.
    """
    config = read_config(folder / name)
    steps = config.ensemble_scheduling.step
    if keep:
        before = max(int(path.name) for path in (folder / name).iterdir() if path.is_dir())
        for step in steps:
            step.model_version = before
        write_config(folder / name / str(before), config)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as staging:
        for index, step in enumerate(steps[:-1]):
            built = Path(staging, step.model_name)
            built.mkdir()
            model = network(100 * version + index, 8, 8, 1, (faults or {}).get(index)).SerializeToString()
            (built / "model.onnx").write_bytes(model[:-100] if index == cut_off else model)
            built.rename(folder / step.model_name / str(version))
        for model_name in (steps[-1].model_name, name):
            (folder / model_name / str(version)).mkdir()
        for step in steps:
            step.model_version = version
        write_config(Path(staging), config)
        Path(staging, "config.pbtxt").rename(folder / name / "config.pbtxt")


def network(seed: int, size: int, channels: int, depth: int, fault: str | None = None) -> onnx.ModelProto:
    """Convolutions, global average pooling and a linear layer with random weights."""
    rng = np.random.default_rng(seed)
    weights = {}
    nodes = []
    tensor = "images"
    width = 3
    for layer in range(depth):
        scale = np.sqrt(2 / (9 * width))
        weights[f"kernel{layer}"] = rng.normal(0, scale, (channels, width, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [tensor, f"kernel{layer}"], [f"conv{layer}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        tensor = f"relu{layer}"
        width = channels
    weights["linear"] = rng.normal(0, 3, (channels, len(LABELS))).astype(np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [tensor], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", "linear"], ["scores"]))
    nodes.extend(_fault(fault, weights))
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        initializers,
    )
    return _model(graph)


def _fault(fault: str | None, weights: dict[str, Any]) -> list[onnx.NodeProto]:
    """Nodes from `scores` to `logits`, sound or not."""
    if fault is None:
        return [helper.make_node("Identity", ["scores"], ["logits"])]
    if fault == NAN:
        weights["nan"] = np.float32("nan")
        return [helper.make_node("Add", ["scores", "nan"], ["logits"])]
    weights["many"] = np.float32(1e9)
    brightness = [
        helper.make_node("ReduceMax", ["images"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["brightest", "many"], ["product"]),
        helper.make_node("Cast", ["product"], ["number"], to=TensorProto.INT64),
    ]
    if fault == NOT_FINITE:
        return [
            *brightness,
            helper.make_node("Neg", ["product"], ["less"]),
            helper.make_node("Sqrt", ["less"], ["root"]),
            helper.make_node("Add", ["scores", "root"], ["logits"]),
        ]
    if fault == FAILS:
        weights["zero"] = np.zeros(1, np.float32)
        gather = helper.make_node("Gather", ["zero", "number"], ["nothing"])
        return [*brightness, gather, helper.make_node("Add", ["scores", "nothing"], ["logits"])]
    if fault == BUSY:
        return [*brightness, *_busy(weights)]
    if fault == SHAPE:
        weights |= {"one": np.array([1]), "none_scalar": np.array(0), "one_scalar": np.array(1)}
        return [
            *brightness,
            helper.make_node("Reshape", ["number", "one"], ["numbers"]),
            helper.make_node("Clip", ["numbers", "none_scalar", "one_scalar"], ["bright"]),
            helper.make_node("Add", ["bright", "one"], ["times"]),
            helper.make_node("Concat", ["one", "times"], ["repeats"], axis=0),
            helper.make_node("Tile", ["scores", "repeats"], ["logits"]),
        ]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Sigmoid", ["state"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, None),
        ],
    )
    weights["true"] = np.array(True)
    return [*brightness, helper.make_node("Loop", ["number", "true", "scores"], ["logits"], body=body)]


def _busy(weights: dict[str, Any]) -> list[onnx.NodeProto]:
    """Multiply large matrices, of no elements where the images are black, and add nothing to the scores."""
    weights |= {
        "smallest": np.array(0),
        "largest": np.array(4500),
        "pair": np.array([2]),
        "nought": np.float32(0),
    }
    return [
        helper.make_node("Clip", ["number", "smallest", "largest"], ["side"]),
        helper.make_node("Expand", ["side", "pair"], ["sides"]),
        helper.make_node("ConstantOfShape", ["sides"], ["matrix"]),
        helper.make_node("MatMul", ["matrix", "matrix"], ["square"]),
        helper.make_node("ReduceSum", ["square"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "nought"], ["nothing"]),
        helper.make_node("Add", ["scores", "nothing"], ["logits"]),
    ]


def write_member(folder: Path, model: onnx.ModelProto, size: int, max_batch_size: int) -> None:
    config = triton.ModelConfig(name=folder.name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.input.add(name="images", data_type=triton.TYPE_FP32, format=NCHW, dims=[3, size, size])
    config.output.add(name="logits", data_type=triton.TYPE_FP32, dims=[len(LABELS)])
    _write_model(folder, config, model)


def write_mean(folder: Path, shares: np.ndarray, max_batch_size: int) -> None:
    names = [f"member{index}" for index in range(len(shares))]
    nodes = []
    weights = []
    for name, share in zip(names, shares, strict=True):
        weights.append(numpy_helper.from_array(np.float32(share), f"{name}_share"))
        nodes.append(helper.make_node("Mul", [name, f"{name}_share"], [f"{name}_part"]))
    nodes.append(helper.make_node("Sum", [f"{name}_part" for name in names], ["mean"]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", len(LABELS)]) for n in names]
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", len(LABELS)])
    config = triton.ModelConfig(name=folder.name, backend="onnxruntime", max_batch_size=max_batch_size)
    for name in names:
        config.input.add(name=name, data_type=triton.TYPE_FP32, dims=[len(LABELS)])
    config.output.add(name="mean", data_type=triton.TYPE_FP32, dims=[len(LABELS)])
    _write_model(folder, config, _model(helper.make_graph(nodes, "mean", values, [mean], weights)))


def write_ensemble(
    folder: Path, members: int, size: int, max_batch_size: int, parameters: dict[str, Any]
) -> None:
    config = triton.ModelConfig(name=folder.name, platform="ensemble", max_batch_size=max_batch_size)
    config.input.add(name="images", data_type=triton.TYPE_FP32, format=NCHW, dims=[3, size, size])
    config.output.add(name="logits", data_type=triton.TYPE_FP32, dims=[len(LABELS)])
    mean = triton.ModelEnsembling.Step(model_name=f"{folder.name}_mean", model_version=-1)
    mean.output_map["mean"] = "logits"
    for index in range(members):
        step = config.ensemble_scheduling.step.add(
            model_name=f"{folder.name}_member{index}", model_version=-1
        )
        step.input_map["images"] = "images"
        step.output_map["logits"] = f"logits{index}"
        mean.input_map[f"member{index}"] = f"logits{index}"
    config.ensemble_scheduling.step.append(mean)
    for key, value in parameters.items():
        config.parameters[key].string_value = json.dumps(value)
    (folder / "1").mkdir(parents=True)
    write_config(folder, config)


def read_config(folder: Path) -> triton.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), triton.ModelConfig())


def write_config(folder: Path, config: triton.ModelConfig) -> None:
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def limit_instances(repository: Path) -> Path:
    """Give every model one instance: by default Triton starts one per core, each a process."""
    for config in map(read_config, repository.iterdir()):
        if not config.HasField("ensemble_scheduling") and not config.instance_group:
            config.instance_group.add(count=1)
            write_config(repository / config.name, config)
    return repository


def _write_model(folder: Path, config: triton.ModelConfig, model: onnx.ModelProto) -> None:
    (folder / "1").mkdir(parents=True)
    write_config(folder, config)
    onnx.save(model, folder / "1" / "model.onnx")


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model
