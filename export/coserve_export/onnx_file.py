"""Reading existing ONNX files and checking that they map images to logits with a dynamic batch size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, ValueInfoProto, helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from coserve_export.compatibility import get_opset, lower_ir_version
from coserve_export.errors import NetworkError, on_one_line

Dimensions = list[int | None]
QUANTISED_OPERATORS = ("Quantize", "QLinear", "Integer", "QGemm", "QAttention")


@dataclass(frozen=True)
class OnnxFile:
    """A network read from a file.

    Attributes:
        path: the file.
        model: the file's content, including any external weights, with the lowest IR version that will do.
        input, output: names of the images and of the logits.
        height, width: the input's size in pixels; None if it is dynamic.
        opset: version of ONNX's standard operators.
    """

    path: Path
    model: bytes
    input: str
    output: str
    height: int | None
    width: int | None
    opset: int
    quantised: bool


def read_onnx(path: Path, output: str | None = None) -> OnnxFile:
    """Read and check a network.

    Args:
        path: an ONNX file.
        output: the name of the logits, required if the network has several outputs.

    Raises:
        NetworkError: the file is not a valid ONNX model, or the network cannot be served as a member.
    """
    try:
        model, data = _load(path)
        if lower_ir_version(model):
            data = model.SerializeToString()
        images = _image_input(model)
        logits = _logits_output(model, output)
        height, width = _image_size(images)
        _check_logits_shape(logits)
        return OnnxFile(
            path=path,
            model=data,
            input=images.name,
            output=logits.name,
            height=height,
            width=width,
            opset=get_opset(model),
            quantised=any(kind in node.op_type for node in model.graph.node for kind in QUANTISED_OPERATORS),
        )
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error


def with_two_logits(network: OnnxFile) -> OnnxFile:
    """Turn the only logit z of a network for two classes into 0 and z, whose softmax is sigmoid(z)."""
    model = onnx.load_model_from_string(network.model)
    names = set(_names(model))
    output = f"{network.output}_of_two_classes"
    while output in names:
        output += "_"
    (one,) = (value for value in model.graph.output if value.name == network.output)
    batch = one.type.tensor_type.shape.dim[0].dim_param if one.type.tensor_type.shape.dim else ""
    model.graph.node.extend(
        [
            helper.make_node("Sub", [one.name, one.name], [f"{output}_zero"]),
            helper.make_node("Concat", [f"{output}_zero", one.name], [output], axis=1),
        ]
    )
    one.CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch or "batch", 2]))
    return replace(network, model=model.SerializeToString(), output=output)


def _names(model: onnx.ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        yield from node.output
    yield from (value.name for value in model.graph.input)
    yield from (tensor.name for tensor in model.graph.initializer)


def _load(path: Path) -> tuple[onnx.ModelProto, bytes]:
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        # Other protobuf messages, and some texts, happen to parse.
        if not model.ir_version or not model.HasField("graph"):
            raise NetworkError("is not an ONNX file")
        size = model.ByteSize()
        _refuse_linked_weights(model, path.parent)
        load_external_data_for_model(model, str(path.parent))
        if model.ByteSize() != size:
            data = _serialise(model)
        onnx.checker.check_model(model, full_check=True)
    except OSError as error:
        raise NetworkError(f"cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise NetworkError("is not an ONNX file") from error
    except NetworkError:
        raise
    # ONNX's checks raise any kind of exception.
    except Exception as error:
        raise NetworkError(f"is not a valid ONNX model: {on_one_line(error)}") from error
    return model, data


def _refuse_linked_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Raise NetworkError if weights are a link, as in Hugging Face's cache; onnx does not follow it."""
    for tensor in filter(uses_external_data, model.graph.initializer):
        file = folder / ExternalDataInfo(tensor).location
        if file.is_symlink():
            raise NetworkError(
                f"its weights {file} are a symbolic link, which is not followed: copy the folder with "
                "cp -rL, and export the copy"
            )


def _serialise(model: onnx.ModelProto) -> bytes:
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise NetworkError(f"cannot hold its weights in one ONNX file: {on_one_line(error)}") from error


def _image_input(model: onnx.ModelProto) -> ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise NetworkError(f"must have one input, the images; it has {len(inputs)} ({names})")
    _check_float(inputs[0], "images")
    return inputs[0]


def _logits_output(model: onnx.ModelProto, name: str | None) -> ValueInfoProto:
    outputs = {value.name: value for value in model.graph.output}
    if name is None and len(outputs) > 1:
        raise NetworkError(f"has several outputs ({', '.join(outputs)}); choose the logits with --output")
    if name is not None and name not in outputs:
        raise NetworkError(f"has no output {name!r}, only {', '.join(outputs)}")
    logits = outputs[name] if name is not None else next(iter(outputs.values()))
    _check_float(logits, "logits")
    return logits


def _check_float(value: ValueInfoProto, role: str) -> None:
    element = value.type.tensor_type.elem_type
    if element != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(element)
        raise NetworkError(
            f"its {role} {value.name!r} are {kind}; input and output must be FLOAT (32 bits), "
            "only weights may have another type"
        )


def _image_size(images: ValueInfoProto) -> tuple[int | None, int | None]:
    shape = _dimensions(images)
    text = "x".join("?" if size is None else str(size) for size in shape)
    if len(shape) != 4:
        shape_text = f"has the shape {text}" if text else "has no shape"
        raise NetworkError(f"its input {images.name!r} {shape_text}, but images are [N, 3, H, W]")
    _check_dynamic_batch(shape[0])
    _, channels, height, width = shape
    if channels != 3 and width == 3:
        raise NetworkError(f"its input is {text}, channels last; export it channels first, [N, 3, H, W]")
    if channels not in (3, None):
        raise NetworkError(f"its input is {text}, with {channels} channels; images have 3")
    return height, width


def _check_dynamic_batch(batch: int | None) -> None:
    if batch is not None:
        raise NetworkError(
            f"its batch size is fixed at {batch}; export it with a dynamic batch size, in torch by "
            "torch.onnx.export(…, dynamo=True, dynamic_shapes=({0: torch.export.Dim('batch')},))"
        )


def _check_logits_shape(logits: ValueInfoProto) -> None:
    if not logits.type.tensor_type.HasField("shape"):
        return
    shape = _dimensions(logits)
    if len(shape) != 2:
        raise NetworkError(f"its output {logits.name!r} has {len(shape)} dimensions, not [N, classes]")
    _check_dynamic_batch(shape[0])


def _dimensions(value: ValueInfoProto) -> Dimensions:
    dimensions = value.type.tensor_type.shape.dim
    # Some exporters write -1 for a size that is not fixed, and ONNX Runtime takes it so.
    return [
        size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else None for size in dimensions
    ]
