"""Networks as ONNX graphs: what they cost, whether they can be measured, and several of them as one."""

from collections.abc import Iterator, Sequence
from math import prod

import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from coserve_bench.errors import BenchError
from coserve_export.ensemble import IMAGES, LOGITS
from coserve_export.mean_graph import mean_graph, mean_inputs

WEIGHTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1}
"""Where the inputs of an operator that multiplies have its weights."""


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds of one image: those of convolutions and linear layers, batch norms folded into them.

    Raises:
        BenchError: a layer's size is not to be had from the graph.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        # What is free, as the batch is, is 0.
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type not in WEIGHTS:
            continue
        weights, output = shapes.get(node.input[WEIGHTS[node.op_type]]), shapes.get(node.output[0])
        count = prod(output[1:]) * _terms(node.op_type, weights, output) if weights and output else 0
        if not count:
            raise BenchError(f"the size of {node.op_type} {node.name or node.output[0]!r} is not known")
        total += count
    return total


def _terms(operator: str, weights: Sequence[int], output: Sequence[int]) -> int:
    """How many products each element of the output sums."""
    if "Conv" in operator:
        return prod(weights[1:])
    if "MatMul" in operator:
        return weights[-2]
    # Gemm's weights may be transposed.
    return prod(weights) // output[-1]


def vanishing(model: onnx.ModelProto) -> Iterator[str]:
    """Names of weights that are all zero, so that what they multiply vanishes.

    Such are the batch norm scales that untrained residual branches end in, and the convolutions that an
    exporter folds them into.
    """
    scales = {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}
    for tensor in model.graph.initializer:
        weighs = len(tensor.dims) > 1 or tensor.name in scales
        if weighs and not numpy_helper.to_array(tensor).any():
            yield tensor.name


def fuse(
    members: Sequence[onnx.ModelProto], classes: int, weights: Sequence[float] | None = None
) -> onnx.ModelProto:
    """One graph from `images` to the mean of the members' logits, the members its branches.

    Args:
        members: networks of one input and one output.
        classes: C, the logits of each.
        weights: as `mean_graph` takes them.

    Raises:
        BenchError: the members' ONNX versions differ.
    """
    copies = [f"copy{index}" for index in range(len(members))]
    image = members[0].graph.input[0]
    nodes = [helper.make_node("Identity", [IMAGES], [copy]) for copy in copies]
    inputs, outputs = ([_renamed(image, name) for name in names] for names in ([IMAGES], copies))
    fused = helper.make_model(helper.make_graph(nodes, "members", inputs, outputs))
    mean = mean_graph(len(members), classes, weights)
    for glue in (fused, mean):
        glue.ir_version = members[0].ir_version
        del glue.opset_import[:]
        glue.opset_import.extend(members[0].opset_import)
    try:
        for index, member in enumerate(members):
            prefix = f"member{index}_"
            branch = compose.add_prefix(member, prefix)
            io_map = [(copies[index], branch.graph.input[0].name)]
            fused = compose.merge_models(fused, branch, io_map)
        logits = [f"member{index}_{member.graph.output[0].name}" for index, member in enumerate(members)]
        io_map = list(zip(logits, mean_inputs(len(members)), strict=True))
        return compose.merge_models(fused, mean, io_map, outputs=[LOGITS])
    except ValueError as error:
        raise BenchError(f"the members cannot be fused: {' '.join(str(error).split())}") from error


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
