"""How Triton runs an ensemble's members: on which devices, with how many threads, in what batches.

Each option sets a field of Triton's model configuration
(https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md) or of its
ONNX Runtime backend (https://github.com/triton-inference-server/onnxruntime_backend#readme).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from coserve_export.errors import DescriptionError

BACKEND_PARAMETERS = (
    "enable_mem_arena",
    "enable_mem_pattern",
    "execution_mode",
    "inter_op_thread_count",
    "memory.enable_memory_arena_shrinkage",
    "session.use_device_allocator_for_initializers",
    "share_session_between_instances",
)
"""Names allowed in `Deployment.parameters`; the backend silently ignores unknown ones."""
MAX_GPU = 2**31 - 1
"""The largest number that Triton's field holds."""
MEMBER_THREADS = 4
"""Threads per member to size instances by, as `coserve serve` sizes its workers."""


@dataclass(frozen=True)
class Placement:
    """The devices that members run on.

    Attributes:
        gpus: members take them in turn, with copies until all have equally many; if empty, `cpu` decides.
        cpu: run on the CPU; otherwise Triton chooses: every GPU, or the CPU if there is none.
    """

    gpus: Sequence[int] = ()
    cpu: bool = False

    @classmethod
    def parse(cls, text: str) -> "Placement":
        """Parse `"auto"`, `"cpu"` or GPU numbers such as `"0,1"`.

        Raises:
            DescriptionError: the text is anything else.
        """
        if text in ("auto", "cpu"):
            return cls(cpu=text == "cpu")
        try:
            gpus = tuple(int(part) for part in text.split(","))
        except ValueError:
            gpus = (-1,)
        if min(gpus) < 0 or max(gpus) > MAX_GPU:
            raise DescriptionError(f"placement must be auto, cpu or GPUs such as 0 or 0,1, not {text!r}")
        return cls(gpus)

    def instance_group(self, member: int, members: int, count: int) -> ModelInstanceGroup:
        """Return the `instance_group` for a member of `members`, with `count` instances on each device."""
        if self.gpus:
            copies = len(self.gpus) // gcd(members, len(self.gpus))
            turns = range(member, copies * members, members)
            gpus = [self.gpus[turn % len(self.gpus)] for turn in turns]
            return ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, gpus=gpus, count=count)
        kind = ModelInstanceGroup.KIND_CPU if self.cpu else ModelInstanceGroup.KIND_AUTO
        return ModelInstanceGroup(kind=kind, count=count)


@dataclass(frozen=True)
class Deployment:
    """How Triton runs the members.

    Attributes:
        placement: the devices to run on.
        instances: copies of each member, which run batches at the same time; by default 1.
        threads: threads per instance on a CPU (`intra_op_thread_count`), by default 1; 0 means one per core,
            and members that share cores then slow each other down.
        preferred_batch_sizes: batch sizes at which the dynamic batcher stops waiting.
        queue_delay_us: how long a request may wait for others to join its batch, in microseconds.
        parameters: further `parameters` of the ONNX Runtime backend.
        cuda: options of ONNX Runtime's CUDA execution provider, such as `cudnn_conv_algo_search`.
        tensorrt: parameters of the TensorRT accelerator, such as `precision_mode`; if empty, TensorRT is not
            used.
        cores: physical cores of Triton's machine. Members then run on the CPU, and what `instances` and
            `threads` leave open follows: as many copies as have `MEMBER_THREADS` for each member.

    Raises:
        DescriptionError: Triton cannot use a value.
    """

    placement: Placement = Placement()
    instances: int | None = None
    threads: int | None = None
    preferred_batch_sizes: Sequence[int] = ()
    queue_delay_us: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.instances is not None and self.instances < 1:
            raise DescriptionError(f"each member needs at least one instance, not {self.instances}")
        if min(self.threads or 0, self.queue_delay_us) < 0:
            raise DescriptionError("threads and queue delay cannot be negative")
        if self.cores is not None:
            self._check_cores(self.cores)
        if any(size < 1 for size in self.preferred_batch_sizes):
            raise DescriptionError(
                f"preferred batch sizes must be positive, not {self.preferred_batch_sizes}"
            )
        if unknown := sorted(set(self.parameters) - set(BACKEND_PARAMETERS)):
            raise DescriptionError(
                f"unknown parameters of Triton's ONNX Runtime backend: {', '.join(unknown)}; allowed: "
                + ", ".join(BACKEND_PARAMETERS)
            )
        if (self.placement.cpu or self.cores is not None) and (self.cuda or self.tensorrt):
            raise DescriptionError("CUDA and TensorRT options cannot be used with members on the CPU")

    def _check_cores(self, cores: int) -> None:
        if cores < 1:
            raise DescriptionError(f"a machine has at least one core, not {cores}")
        if self.placement.gpus:
            raise DescriptionError("cores are for members on the CPU: leave them out when placing on GPUs")
        if self.threads == 0:
            raise DescriptionError("0 threads, one per core, cannot be used with cores: give another number")
        if self.instances is not None and self.threads is not None:
            raise DescriptionError("instances and threads leave nothing to choose for cores: leave one out")

    def sized(self, members: int) -> "Deployment":
        """Return the deployment of an ensemble, with all numbers filled in."""
        if self.cores is None:
            threads = 1 if self.threads is None else self.threads
            return replace(self, instances=self.instances or 1, threads=threads)
        instances = self.instances or self.cores // (members * (self.threads or MEMBER_THREADS)) or 1
        threads = self.threads or self.cores // (members * instances) or 1
        placement = Placement(cpu=True)
        return replace(self, placement=placement, cores=None, instances=instances, threads=threads)

    def apply(self, config: ModelConfig, member: int, members: int) -> None:
        """Set these options in the configuration of a member of `members`."""
        sized = self.sized(members)
        config.instance_group.append(sized.placement.instance_group(member, members, sized.instances or 1))
        config.dynamic_batching.preferred_batch_size.extend(self.preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = self.queue_delay_us
        set_parameters(config, {"intra_op_thread_count": str(sized.threads), **self.parameters})
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        # Triton tries accelerators in this order; TensorRT takes the parts of the network that it supports.
        for name, options in (("tensorrt", self.tensorrt), ("cuda", self.cuda)):
            if options:
                accelerators.add(name=name, parameters=options)


def runs_on_gpus(config: ModelConfig) -> bool:
    """Return whether a member's configuration names GPUs or their accelerators."""
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    return bool(accelerators) or any(
        group.kind == ModelInstanceGroup.KIND_GPU for group in config.instance_group
    )


def set_parameters(config: ModelConfig, parameters: Mapping[str, str]) -> None:
    """Add entries to a configuration's `parameters`."""
    for key, value in parameters.items():
        config.parameters[key].string_value = value


DEFAULT_DEPLOYMENT = Deployment()
