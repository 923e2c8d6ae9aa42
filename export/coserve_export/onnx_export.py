"""Converting torch networks to ONNX: dynamic batch size, one file, fp32 or fp16 weights."""

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

from coserve_export.compatibility import OLDEST
from coserve_export.ensemble import IMAGES, LOGITS
from coserve_export.errors import NetworkError

OPSET = OLDEST.opset
"""Version of ONNX's standard operators."""
FP16_LIMIT = torch.finfo(torch.float16).max


def export_network(network: torch.nn.Module, image_size: tuple[int, int]) -> onnx.ModelProto:
    """Export a network in eval mode with a dynamic batch size.

    Args:
        network: maps images `[N, 3, H, W]`, float32, to logits `[N, C]`.
        image_size: height and width, H and W.

    Returns:
        A model from `images` to `logits`, without the exporter's metadata about source files.

    Raises:
        NetworkError: torch cannot export the network with a dynamic batch size.
    """
    # The exporter would treat a batch size of 1 as a constant.
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
        raise NetworkError(f"torch cannot export it with a dynamic batch size: {reason}") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    model = program.model_proto
    # The exporter silently fixes the batch size if the network uses it as a Python number.
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise NetworkError(
            f"its batch size is fixed at {batch.dim_value}: forward() uses it as a Python number"
        )
    return model


def convert_to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert weights and arithmetic to fp16; input and output stay fp32."""
    converted = convert_float_to_float16(model, keep_io_types=True)
    # The converter puts the cast of the input after the nodes that read it.
    ordered = onnx_ir.from_proto(converted)
    TopologicalSortPass()(ordered)
    return onnx_ir.serde.serialize_model(ordered)


@contextmanager
def reject_fp16_overflow(network: torch.nn.Module, subject: str) -> Iterator[None]:
    """Reject activations that fp16 cannot hold while the network runs in fp32.

    ONNX Runtime cannot detect them on a CPU, where it computes in fp32 what a GPU computes in fp16.

    Raises:
        NetworkError: an input or output of a layer is too large; names the first such layer.
    """

    def check(name: str, layer: torch.nn.Module, inputs: tuple[object, ...], output: object) -> None:
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(
            (float(tensor.abs().max()) for tensor in tensors if tensor.is_floating_point()), default=0
        )
        if largest > FP16_LIMIT:
            layer_name = name or type(layer).__name__
            raise NetworkError(
                f"{subject}: activations of its layer {layer_name} reach {largest:.0f}, but fp16 ends at "
                f"{FP16_LIMIT:.0f}; use --precision fp32; nothing was written"
            )

    hooks = [layer.register_forward_hook(partial(check, name)) for name, layer in network.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error; while torch is importing, another error may hide it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
