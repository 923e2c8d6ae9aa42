"""CUDA's libraries, loaded before members are, so that a missing one is named."""

import contextlib
import ctypes
import io
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from coserve_server.engines.onnxruntime.replica import DEVICE
from coserve_server.engines.onnxruntime.sessions import FATAL, WARNING
from coserve_server.errors import SettingsError, first_line

PROVIDER = Path(ort.__file__).parent / "capi/libonnxruntime_providers_cuda.so"
"""The CUDA provider's library."""
CUDNN = "libcudnn.so.9"
"""cuDNN, which newer versions of the provider load only when they meet a convolution."""


def load(gpu: int) -> None:
    """Make ONNX Runtime load its CUDA provider, and load cuDNN.

    Otherwise ONNX Runtime writes to standard error which library is missing, and uses the CPU.

    Args:
        gpu: number of a GPU that the provider shall use.

    Raises:
        SettingsError: a library is missing, or the provider cannot use the GPU.
    """
    # They may come from PyPI, where the system's loader does not look. What this prints is said below.
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    ort.set_default_logger_severity(FATAL)
    try:
        # Only ONNX Runtime can load its provider, which calls functions that are set up before.
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), DEVICE, gpu)
        if os.name == "posix":
            ctypes.CDLL(CUDNN)
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        reason = _missing_library() or first_line(error)
        fault = (
            f"gpus: ONNX Runtime {ort.__version__} cannot use CUDA: {reason}: pip install "
            "'onnxruntime-gpu[cuda,cudnn]', or install these versions of CUDA and cuDNN"
        )
        raise SettingsError([fault]) from error
    finally:
        ort.set_default_logger_severity(WARNING)


def _missing_library() -> str | None:
    """Return what the loader says of a library that the provider needs; None if all are there."""
    try:
        ctypes.CDLL(str(PROVIDER))
    except OSError as error:
        reason = first_line(error)
        # The loader looks for symbols when it has all libraries, and this one is ONNX Runtime's.
        return None if "Provider_GetHost" in reason else reason
    return None
