"""The ensemble's last step: an ONNX graph that averages the members' logits."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from coserve_export.compatibility import OLDEST
from coserve_export.ensemble import LOGITS


def mean_inputs(num_members: int) -> list[str]:
    """Return the names of the graph's inputs, one per member in order."""
    return [f"{LOGITS}{index}" for index in range(num_members)]


def mean_graph(num_members: int, num_classes: int, weights: Sequence[float] | None = None) -> onnx.ModelProto:
    """Build a graph that averages S float32 inputs `[N, C]` into `logits` `[N, C]`.

    Args:
        num_members: the number of members, S.
        num_classes: the number of classes, C.
        weights: one positive number per member, with any sum; None weights all members equally.
    """
    inputs = mean_inputs(num_members)
    initializers: list[TensorProto] = []
    if weights is None or len(set(weights)) == 1:
        nodes = [helper.make_node("Mean", inputs, [LOGITS])]
    else:
        total = sum(weights)
        shares = [f"share{index}" for index in range(num_members)]
        weighted = [f"weighted{index}" for index in range(num_members)]
        for share, weight in zip(shares, weights, strict=True):
            initializers.append(numpy_helper.from_array(np.asarray(weight / total, np.float32), share))
        nodes = [
            helper.make_node("Mul", pair[:2], pair[2:]) for pair in zip(inputs, shares, weighted, strict=True)
        ]
        nodes.append(helper.make_node("Sum", weighted, [LOGITS]))
    graph = helper.make_graph(
        nodes,
        "mean",
        [_tensor(name, num_classes) for name in inputs],
        [_tensor(LOGITS, num_classes)],
        initializers,
    )
    return helper.make_model(
        graph,
        ir_version=OLDEST.ir_version,
        opset_imports=[helper.make_opsetid("", OLDEST.opset)],
        producer_name="coserve",
    )


def _tensor(name: str, num_classes: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", num_classes])
