"""Networks as ONNX graphs: count their cost, find weights that are zero, and fuse several into one."""

from collections.abc import Iterator, Sequence
from math import prod

import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from coserve_bench.errors import BenchError
from coserve_export.ensemble import IMAGES, LOGITS
from coserve_export.mean_graph import mean_graph, mean_inputs

WEIGHTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1}
"""The input that holds the weights, by operator; these are the operators that are counted."""


def multiply_adds(model: onnx.ModelProto) -> int:
    """Count the multiply-adds of one image: those of convolutions and linear layers.

    Batch norms count as folded into the convolutions.

    Raises:
        BenchError: the graph does not tell the size of a layer.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        # A free dimension, such as the batch, is 0.
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type not in WEIGHTS:
            continue
        weights = shapes.get(node.input[WEIGHTS[node.op_type]])
        output = shapes.get(node.output[0])
        count = prod(output[1:]) * _terms(node.op_type, weights, output) if weights and output else 0
        if not count:
            raise BenchError(f"the size of {node.op_type} {node.name or node.output[0]!r} is not known")
        total += count
    return total


def _terms(operator: str, weights: Sequence[int], output: Sequence[int]) -> int:
    """Return how many products are summed for each element of the output."""
    if "Conv" in operator:
        return prod(weights[1:])
    if "MatMul" in operator:
        return weights[-2]
    # The weights of a Gemm may be transposed.
    return prod(weights) // output[-1]


def zero_weights(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of weights that are all zero, so that their layer's output vanishes.

    An untrained network has such weights: the scales of the batch norms that end its residual branches, and
    the convolutions that an exporter folds those into.
    """
    scales = {node.input[1] for node in model.graph.node if node.op_type == "BatchNormalization"}
    for tensor in model.graph.initializer:
        is_weight = len(tensor.dims) > 1 or tensor.name in scales
        if is_weight and not numpy_helper.to_array(tensor).any():
            yield tensor.name


def fuse(
    members: Sequence[onnx.ModelProto], classes: int, weights: Sequence[float] | None = None
) -> onnx.ModelProto:
    """Build one graph from `images` to the mean of the members' logits, with the members as its branches.

    Args:
        members: networks with one input and one output.
        classes: C, the number of logits of each member.
        weights: weights of the members in the mean, as for `mean_graph`.

    Raises:
        BenchError: the members' ONNX versions differ.
    """
    copies = [f"copy{index}" for index in range(len(members))]
    image = members[0].graph.input[0]
    nodes = [helper.make_node("Identity", [IMAGES], [copy]) for copy in copies]
    inputs = [_renamed(image, IMAGES)]
    outputs = [_renamed(image, copy) for copy in copies]
    fused = helper.make_model(helper.make_graph(nodes, "members", inputs, outputs))
    mean = mean_graph(len(members), classes, weights)
    for glue in (fused, mean):
        glue.ir_version = members[0].ir_version
        del glue.opset_import[:]
        glue.opset_import.extend(members[0].opset_import)
    try:
        for index, member in enumerate(members):
            branch = compose.add_prefix(member, f"member{index}_")
            io_map = [(copies[index], branch.graph.input[0].name)]
            fused = compose.merge_models(fused, branch, io_map)
        logits = [f"member{index}_{member.graph.output[0].name}" for index, member in enumerate(members)]
        io_map = list(zip(logits, mean_inputs(len(members)), strict=True))
        return compose.merge_models(fused, mean, io_map, outputs=[LOGITS])
    except ValueError as error:
        raise BenchError(f"the members cannot be fused: {' '.join(str(error).split())}") from error


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Return an fp32 tensor of the same shape under another name."""
    shape = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
