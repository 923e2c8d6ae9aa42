"""CUDA's own calls, for memory that ONNX Runtime and Triton's client do not give.

Protocol: https://docs.nvidia.com/cuda/cuda-runtime-api/, in Python
https://nvidia.github.io/cuda-python/cuda-bindings/latest/
"""

from collections.abc import Callable
from typing import Any

from coserve_server.errors import EngineError, SettingsError

try:
    from cuda.bindings import runtime
except ImportError as missing:
    fault = (
        "triton_shared_memory_gpu and pinned_host_memory need the extra cuda: "
        f"pip install 'coserve[cuda]' ({missing})"
    )
    raise SettingsError([fault]) from missing


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call CUDA, and give what it does.

    Raises:
        EngineError: it fails.
    """
    error, *result = function(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(error)
        raise EngineError(f"CUDA: {text.decode()}")
    return result[0] if result else None


__all__ = ["call", "runtime"]
