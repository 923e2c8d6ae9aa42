"""The versions of ONNX Runtime and Triton that load a network, and lowering what a network needs.

ONNX Runtime refuses a file whose IR version or operator set is newer than those it knows, even if the network
uses nothing that is new.
"""

from contextlib import suppress
from dataclasses import dataclass

import onnx
from onnx import version_converter

DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Runtime:
    """The first version of ONNX Runtime that loads an IR version and an operator set.

    Attributes:
        onnxruntime: the version of ONNX Runtime.
        triton: the first Triton image that contains it or a later one; None if it is newer than 26.07's.
        ir_version, opset: the newest that it loads.
    """

    onnxruntime: str
    triton: str | None
    ir_version: int
    opset: int

    def __str__(self) -> str:
        image = "newer than Triton 26.07's" if self.triton is None else f"Triton {self.triton}"
        return f"ONNX Runtime {self.onnxruntime} or later ({image})"


# Measured with ONNX Runtime's wheels; the images as in the build.py of Triton's releases.
RUNTIMES = (
    Runtime("1.17", "24.03", ir_version=9, opset=20),
    Runtime("1.18", "24.05", ir_version=10, opset=21),
    Runtime("1.21", "25.03", ir_version=10, opset=22),
    Runtime("1.23", "25.08", ir_version=11, opset=23),
    Runtime("1.24", "26.02", ir_version=13, opset=25),
    Runtime("1.25", "26.07", ir_version=13, opset=26),
    Runtime("1.32", None, ir_version=14, opset=28),
)
OLDEST = RUNTIMES[0]
"""The versions of exported networks, to which others are lowered if possible."""


def get_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's standard operators; 0 if the model imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def find_runtime(model: onnx.ModelProto) -> Runtime | None:
    """Return the first ONNX Runtime that loads a model; None if it is newer than all that are known here."""
    opset = get_opset(model)
    fitting = [one for one in RUNTIMES if model.ir_version <= one.ir_version and opset <= one.opset]
    return fitting[0] if fitting else None


def lower_ir_version(model: onnx.ModelProto) -> bool:
    """Lower a model's IR version to the one that its operator set came with; return whether it changed.

    Later IR versions add types that only later operators take, and notes that no runtime reads. The
    exception is overloaded functions.
    """
    if any(function.overload for function in model.functions):
        return False
    needed = [one.ir_version for one in RUNTIMES if get_opset(model) <= one.opset]
    if not needed or model.ir_version <= needed[0]:
        return False
    model.ir_version = needed[0]
    return True


def lower_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a model with the oldest operators that it can be converted to, no older than those of `OLDEST`.

    Run both models on the same images before the converted one is used: the converter is ONNX's own, but it
    does not check what it does.

    Returns:
        The converted model, or None if the model needs the operators that it has.
    """
    for runtime in RUNTIMES:
        if get_opset(model) <= runtime.opset:
            return None
        # The converter raises any kind of exception, among them for operators that have no earlier version.
        with suppress(Exception):
            lowered = version_converter.convert_version(model, runtime.opset)
            lower_ir_version(lowered)
            onnx.checker.check_model(lowered, full_check=True)
            return lowered
    return None
