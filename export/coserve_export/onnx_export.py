"""From torch networks to ONNX: dynamic batch, one lean file, fp32 or fp16 weights."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, TopologicalSortPass
from onnxruntime.transformers.float16 import convert_float_to_float16

from coserve_export.ensemble import IMAGES, LOGITS
from coserve_export.errors import NetworkError

OPSET = 20
"""Of ONNX's own operators; ONNX Runtime has it since 1.17, Triton since 24.02."""
FP16_LIMIT = torch.finfo(torch.float16).max


def export_network(network: torch.nn.Module, image_size: tuple[int, int]) -> onnx.ModelProto:
    """Export a network in eval mode, its batch free.

    Args:
        network: float32 `[N, 3, H, W]` to logits `[N, C]`.
        image_size: H and W.

    Returns:
        A model from `images` to `logits`, without the exporter's notes on source files.

    Raises:
        NetworkError: where torch cannot export the network with a free batch.
    """
    # A batch of 1 in the example would be taken for a constant.
    example = torch.zeros(2, 3, *image_size)
    try:
        with _quiet():
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        if _was_interrupted(error):
            raise KeyboardInterrupt from error
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise NetworkError(f"torch cannot export it with a free batch: {reason}") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    model = program.model_proto
    # Where a network computes with its batch as a number, the exporter freezes it without a word.
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise NetworkError(
            f"its batch is frozen at {batch.dim_value}: its forward uses the batch as a number"
        )
    return model


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert weights and arithmetic to fp16; input and output stay fp32."""
    converted = convert_float_to_float16(model, keep_io_types=True)
    # The converter appends the input's cast behind the nodes that read it.
    ordered = onnx_ir.from_proto(converted)
    TopologicalSortPass()(ordered)
    return onnx_ir.serde.serialize_model(ordered)


@contextmanager
def within_fp16(network: torch.nn.Module, subject: str) -> Iterator[None]:
    """While the network runs in fp32, refuse values between its layers that fp16 cannot hold.

    ONNX Runtime on a CPU computes in fp32 what a GPU computes in fp16, and so never shows them.

    Raises:
        NetworkError: for the first layer that takes or gives such a value.
    """

    def check(name: str, layer: torch.nn.Module, inputs: tuple[object, ...], output: object) -> None:
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(
            (float(tensor.abs().max()) for tensor in tensors if tensor.is_floating_point()), default=0
        )
        if largest > FP16_LIMIT:
            layer_name = name or type(layer).__name__
            raise NetworkError(
                f"{subject}: its layer {layer_name} has values up to {largest:.0f}, and fp16 ends at "
                f"{FP16_LIMIT:.0f}; use --precision fp32; nothing was written"
            )

    hooks = [layer.register_forward_hook(partial(check, name)) for name, layer in network.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error arose from Ctrl-C, which torch meets with another one while it is being imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own internals from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
