"""How Triton is to run an ensemble's models: where, on how many threads, in what batches.

Each choice is one of Triton's own fields
(https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md) or of its
ONNX Runtime backend (https://github.com/triton-inference-server/onnxruntime_backend#readme).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from coserve_export.errors import DescriptionError

PARAMETERS = (
    "enable_mem_arena",
    "enable_mem_pattern",
    "execution_mode",
    "inter_op_thread_count",
    "memory.enable_memory_arena_shrinkage",
    "session.use_device_allocator_for_initializers",
    "share_session_between_instances",
)
"""Those of the ONNX Runtime backend that have no option of their own; it ignores names it does not know."""
MAX_GPU = 2**31 - 1
"""The largest number that fits where Triton keeps it."""


@dataclass(frozen=True)
class Placement:
    """Where members run.

    Attributes:
        gpus: member i runs on `gpus[i % len(gpus)]`; empty leaves the choice to `cpu`.
        cpu: on the CPU; otherwise Triton decides, which means every GPU, or the CPU where there is none.
    """

    gpus: tuple[int, ...] = ()
    cpu: bool = False

    @classmethod
    def parse(cls, text: str) -> "Placement":
        """Of `"auto"`, `"cpu"` or numbers of GPUs such as `"0,1"`.

        Raises:
            DescriptionError: for anything else.
        """
        if text in ("auto", "cpu"):
            return cls(cpu=text == "cpu")
        try:
            gpus = tuple(int(part) for part in text.split(","))
        except ValueError:
            gpus = (-1,)
        if min(gpus) < 0 or max(gpus) > MAX_GPU:
            raise DescriptionError(f"placement {text!r} is neither auto, cpu nor GPUs such as 0 or 0,1")
        return cls(gpus)

    def instance_group(self, member: int, count: int) -> ModelInstanceGroup:
        """Triton's `instance_group` of a member."""
        if self.gpus:
            gpus = [self.gpus[member % len(self.gpus)]]
            return ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, gpus=gpus, count=count)
        kind = ModelInstanceGroup.KIND_CPU if self.cpu else ModelInstanceGroup.KIND_AUTO
        return ModelInstanceGroup(kind=kind, count=count)


@dataclass(frozen=True)
class Deployment:
    """How Triton runs the members.

    Attributes:
        instances: copies of each member that take batches at the same time.
        threads: per instance on a CPU, `intra_op_thread_count`; 0 takes a thread per core, and then members
            on the same cores slow each other down.
        preferred_batch_sizes: the dynamic batcher stops waiting at these sizes.
        queue_delay_us: how long a request may wait for others, in microseconds.
        parameters: more of the backend's `parameters`.
        cuda: options of ONNX Runtime's CUDA execution provider, such as `cudnn_conv_algo_search`.
        tensorrt: parameters of the TensorRT accelerator, such as `precision_mode`; empty does not use it.

    Raises:
        DescriptionError: for values that Triton cannot use.
    """

    placement: Placement = Placement()
    instances: int = 1
    threads: int = 1
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay_us: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)
    tensorrt: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise DescriptionError(f"each member needs at least one instance, not {self.instances}")
        if min(self.threads, self.queue_delay_us) < 0:
            raise DescriptionError("threads and queue delay cannot be negative")
        if any(size < 1 for size in self.preferred_batch_sizes):
            raise DescriptionError(f"preferred batches must be positive, not {self.preferred_batch_sizes}")
        if unknown := sorted(set(self.parameters) - set(PARAMETERS)):
            raise DescriptionError(
                f"no parameter of Triton's ONNX Runtime backend: {', '.join(unknown)}; known are "
                + ", ".join(PARAMETERS)
            )
        if self.placement.cpu and (self.cuda or self.tensorrt):
            raise DescriptionError("options of CUDA and TensorRT have no meaning for members on the CPU")

    def apply(self, config: ModelConfig, member: int) -> None:
        """Set the fields of a member's configuration."""
        config.instance_group.append(self.placement.instance_group(member, self.instances))
        config.dynamic_batching.preferred_batch_size.extend(self.preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = self.queue_delay_us
        set_parameters(config, {"intra_op_thread_count": str(self.threads), **self.parameters})
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        # TensorRT takes what it can of the network; the order is that of preference.
        for name, options in (("tensorrt", self.tensorrt), ("cuda", self.cuda)):
            if options:
                accelerators.add(name=name, parameters=options)


def set_parameters(config: ModelConfig, parameters: Mapping[str, str]) -> None:
    """Add to a configuration's `parameters`."""
    for key, value in parameters.items():
        config.parameters[key].string_value = value


DEFAULT_DEPLOYMENT = Deployment()
