"""The engine, and how it runs members in this process."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from coserve_server.settings.section import Section, split_list

Precision = Literal["fp32", "bf16"]
"""Precision in which fp32 networks are computed."""
GpuPrecision = Literal["fp32", "tf32"]
"""Precision in which fp32 networks are computed on NVIDIA's GPUs."""


def _check_distinct(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("each number may be named once")
    return numbers


class EngineSettings(Section):
    """The engine, and how members run in this process."""

    repository: Path | None = None
    """Folder of the model repository, for the engines `onnxruntime` and `openvino`."""
    engine: Literal["onnxruntime", "openvino", "triton"] = "onnxruntime"
    """What runs the members: `onnxruntime` or `openvino` in this process, or Triton servers (`triton`)."""
    member_threads: int | None = Field(None, ge=1)
    """Threads per member in this process; by default the members share the cores equally. Copies of the
    ensemble use cores that are left."""
    max_batch_size: int | None = Field(None, ge=1)
    """Limit on the images per batch in this process, if it is below the repository's own limit."""
    pin_members: bool = True
    """Whether to pin each member in this process to cores of its own; no effect under a CPU quota."""
    gpus: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        NoDecode,
        BeforeValidator(split_list),
        AfterValidator(_check_distinct),
    ] = ()
    """Numbers of GPUs, separated by commas, on which the engine `onnxruntime` places members in turn, with
    copies until all GPUs are used; by default members run on the CPU."""
    cuda_graphs: bool = False
    """Whether members on `gpus` run as CUDA graphs, with one launch per batch instead of one per kernel."""
    gpu_precision: GpuPrecision = "fp32"
    """Precision in which members on `gpus` compute fp32 networks: `tf32` is faster and rounds to 10 bits."""
    gpu_memory_mib: int | None = Field(None, ge=1)
    """Limit on what ONNX Runtime takes for one member on a GPU, in MiB; by default what is free."""
    openvino_cache: Path | None = None
    """Folder where the engine `openvino` caches compiled networks for faster starts; created if missing."""
    openvino_precision: Precision = "fp32"
    """Precision in which `openvino` computes fp32 networks; not every processor supports `bf16`."""

    @model_validator(mode="after")
    def _check_options(self) -> "EngineSettings":
        if self.engine != "onnxruntime" and self.gpus:
            raise ValueError("gpus: only engine onnxruntime uses them")
        if not self.gpus:
            for name in ("cuda_graphs", "gpu_precision", "gpu_memory_mib"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: only members on gpus use it")
        if self.gpus and self.member_threads is not None:
            raise ValueError("member_threads: members on gpus take no share of the cores")
        if self.engine != "openvino":
            if self.openvino_cache is not None:
                raise ValueError("openvino_cache: only engine openvino uses it")
            if self.openvino_precision != "fp32":
                raise ValueError("openvino_precision: only engine openvino uses it")
        return self
