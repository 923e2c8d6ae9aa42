"""Options of the engines that run members in this process."""

from dataclasses import dataclass
from pathlib import Path

from coserve_server.settings import GpuPrecision, Precision, Settings


@dataclass(frozen=True)
class EngineOptions:
    """Options of the engines `onnxruntime` and `openvino`; the settings of the same names describe them.

    Attributes:
        threads: threads per member; None for an even share of the cores.
        pinned: whether members keep to cores of their own.
        precision: in which fp32 networks are computed; for `openvino`.
        cache: folder for compiled networks; for `openvino`.
        gpus: GPUs to place members on, by number; for `onnxruntime`. Empty for the cores.
        cuda_graphs: whether members on `gpus` run as CUDA graphs.
        gpu_precision: in which fp32 networks are computed on `gpus`.
        gpu_memory_mib: limit on what ONNX Runtime takes for each member on a GPU.
        processes: number of processes like this one, which share the memory.
    """

    engine: str = "onnxruntime"
    threads: int | None = None
    pinned: bool = True
    precision: Precision = "fp32"
    max_batch_size: int | None = None
    cache: Path | None = None
    gpus: tuple[int, ...] = ()
    cuda_graphs: bool = False
    gpu_precision: GpuPrecision = "fp32"
    gpu_memory_mib: int | None = None
    processes: int = 1

    @classmethod
    def from_settings(cls, settings: Settings) -> "EngineOptions":
        """Return the options that the settings name."""
        return cls(
            engine=settings.engine,
            threads=settings.member_threads,
            pinned=settings.pin_members,
            precision=settings.openvino_precision,
            max_batch_size=settings.max_batch_size,
            cache=settings.openvino_cache,
            gpus=settings.gpus,
            cuda_graphs=settings.cuda_graphs,
            gpu_precision=settings.gpu_precision,
            gpu_memory_mib=settings.gpu_memory_mib,
            processes=settings.workers or 1,
        )
