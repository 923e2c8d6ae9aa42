"""CUDA's libraries, loaded before ONNX Runtime looks for them, so that a missing one is named."""

import contextlib
import ctypes
import io
import os
from pathlib import Path

import onnxruntime as ort

from coserve_server.errors import SettingsError, first_line

PROVIDER = "libonnxruntime_providers_cuda.so"
CUDNN = "libcudnn.so.9"
"""cuDNN, which newer versions of the provider load only when they meet a convolution."""


def load(folder: Path = Path(ort.__file__).parent / "capi") -> None:
    """Load the CUDA provider's library, and with it those that it needs.

    Otherwise ONNX Runtime writes to standard error which one is missing, and uses the CPU.

    Args:
        folder: where the provider's library lies.

    Raises:
        SettingsError: a library is missing.
    """
    # They may come from PyPI, where the system's loader does not look. What this prints is said below.
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    if os.name != "posix":
        return
    try:
        ctypes.CDLL(str(folder / PROVIDER))
        ctypes.CDLL(CUDNN)
    except OSError as error:
        fault = (
            f"gpus: ONNX Runtime {ort.__version__} cannot use CUDA: {first_line(error)}: pip install "
            "'onnxruntime-gpu[cuda,cudnn]', or install these versions of CUDA and cuDNN"
        )
        raise SettingsError([fault]) from error
