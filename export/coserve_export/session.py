"""Running ONNX models with ONNX Runtime on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from coserve_export.errors import NetworkError, on_one_line
from coserve_export.parity import Images, Logits


class Session:
    """A model loaded in ONNX Runtime.

    Args:
        model: the content of an ONNX file.
        subject: the model's name in error messages.

    Raises:
        NetworkError: ONNX Runtime cannot load the model, or later cannot run it.
    """

    def __init__(self, model: bytes, subject: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # Threads that spin while waiting starve everything else on the cores, including torch's threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.subject = subject
        try:
            self._session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            raise NetworkError(f"{subject}: ONNX Runtime cannot load it: {on_one_line(error)}") from error

    def run(self, output: str, inputs: Mapping[str, Images]) -> Logits:
        """Run a batch and return one of the outputs."""
        try:
            outputs: list[Any] = self._session.run([output], dict(inputs))
        except Exception as error:
            raise NetworkError(f"{self.subject}: ONNX Runtime cannot run it: {on_one_line(error)}") from error
        return np.asarray(outputs[0])
