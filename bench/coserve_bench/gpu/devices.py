"""A GPU with its streams and graphs, or the CPU, on which the same steps can be tried."""

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UPS = 3
"""Runs before a capture, in which libraries choose algorithms and allocate memory."""
MATRIX = 8192
"""Rows of the matrices whose product is the peak."""

Call = Callable[[], Tensor]


class Device(Protocol):
    """Runs calls that launch work and return a tensor."""

    torch_device: torch.device

    def describe(self) -> dict[str, Any]:
        """Return the device's name and what it can do."""

    def together(self, calls: Sequence[Call]) -> list[Tensor]:
        """Run calls on a stream each; the present stream goes on when all have ended."""

    def capture(self, call: Call) -> Call:
        """Capture a call as a CUDA graph, and return what replays it."""

    def wait(self) -> None:
        """Wait for all work."""


class Cpu:
    """Runs everything in turn, to try the same steps without a GPU."""

    torch_device = torch.device("cpu")

    def describe(self) -> dict[str, Any]:
        """Return the processor's name."""
        return {"name": platform.processor() or platform.machine()}

    def together(self, calls: Sequence[Call]) -> list[Tensor]:
        """Run the calls in turn."""
        return [call() for call in calls]

    def capture(self, call: Call) -> Call:
        """Run the call once, and return it."""
        call()
        return call

    def wait(self) -> None:
        """Do nothing: work on the CPU has ended."""


class Cuda:
    """The first GPU."""

    torch_device = torch.device("cuda", 0)

    def __init__(self) -> None:
        """Open the GPU; libraries choose the fastest algorithm for each shape."""
        torch.cuda.set_device(self.torch_device)
        torch.backends.cudnn.benchmark = True
        self._streams: list[torch.cuda.Stream] = []

    def describe(self) -> dict[str, Any]:
        """Return the GPU's name, multiprocessors, memory and versions of its libraries."""
        properties = torch.cuda.get_device_properties(self.torch_device)
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }

    def together(self, calls: Sequence[Call]) -> list[Tensor]:
        """Run calls on a stream each; inside a capture, they become branches of the graph."""
        while len(self._streams) < len(calls):
            self._streams.append(_new_stream(self.torch_device))
        present = torch.cuda.current_stream()
        streams = self._streams[: len(calls)]
        # PyTorch hands out its 32 streams in turn, so the present one may be among these: all must wait for
        # it before it gets a call, or the others would run after that call.
        for stream in streams:
            stream.wait_stream(present)
        results = []
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                results.append(call())
        for stream in streams:
            present.wait_stream(stream)
        return results

    def capture(self, call: Call) -> Call:
        """Capture a call as a CUDA graph with memory of its own, and return what replays it."""
        # Libraries have a workspace per stream, which graphs that run at once must not share.
        side = _new_stream(self.torch_device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            result = call()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def wait(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize(self.torch_device)


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def why_unusable(name: str) -> str | None:
    """Return why PyTorch cannot use the device `cuda` or `cpu`; None if it can. Nothing is opened."""
    if name == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU; --device cpu tries all without one"
    return None


def open_device(name: str) -> Device:
    """Return the device `cuda` or `cpu`."""
    return Cuda() if name == "cuda" else Cpu()


def set_tf32(allowed: bool) -> None:
    """Let fp32 convolutions and products round to TF32, or not."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def measure_peak(device: Device, precision: str, runs: int = 5) -> float:
    """Return the operations per second of a large product, in TFLOP/s; a multiply-add counts as two.

    Args:
        precision: `fp32`, `tf32` or `fp16`.
    """
    set_tf32(precision == "tf32")
    size = MATRIX if device.torch_device.type == "cuda" else 512
    dtype = torch.float16 if precision == "fp16" else torch.float32
    a, b = torch.randn(2, size, size, device=device.torch_device).to(dtype)
    with torch.inference_mode():
        seconds = [_time(device, lambda: a @ b) for _ in range(runs)]
    return 2 * size**3 / min(seconds) / 1e12


def measure_launch(device: Device, launches: int = 1000) -> float:
    """Return how long the host takes to launch one small kernel, in microseconds."""
    x = torch.zeros(1, device=device.torch_device)
    x.add_(1)

    def launch() -> Tensor:
        for _ in range(launches):
            x.add_(1)
        return x

    return _time(device, launch) / launches * 1e6


def _time(device: Device, call: Call) -> float:
    device.wait()
    start = time.perf_counter()
    call()
    device.wait()
    return time.perf_counter() - start
