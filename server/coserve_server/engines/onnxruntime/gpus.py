"""Members on NVIDIA GPUs. Each session has a CUDA stream, so members on one GPU run concurrently.

Provider: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from math import gcd

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import LoadedMember, misfit
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime import cuda_driver, cuda_libraries
from coserve_server.engines.onnxruntime.cuda_graphs import CAPTURES
from coserve_server.engines.onnxruntime.replica import FLOAT, Replica, Upload
from coserve_server.engines.onnxruntime.sessions import Provider, create_session
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import EngineError, SettingsError, first_line
from coserve_server.settings import GpuPrecision

CUDA = "CUDAExecutionProvider"
"""ONNX Runtime's name for the execution provider."""
WORKSPACE_BYTES = 64 * 2**20
"""Estimate of what a session takes at least beside weights and batches: cuBLAS's and cuDNN's workspaces."""


def check_gpus(gpus: Sequence[int]) -> None:
    """Check that this machine has the GPUs, and that ONNX Runtime can use them.

    Raises:
        SettingsError: it has not, ONNX Runtime was built without CUDA, or a library is missing.
    """
    available = ort.get_available_providers()
    if CUDA not in available:
        fault = (
            f"gpus: this ONNX Runtime has no {CUDA}, only {', '.join(available)}: install "
            "onnxruntime-gpu[cuda,cudnn] in place of onnxruntime"
        )
        raise SettingsError([fault])
    count = cuda_driver.count_gpus()
    if missing := [gpu for gpu in gpus if gpu >= count]:
        numbers = ", ".join(map(str, missing))
        raise SettingsError([f"gpus: there is no GPU {numbers}; the driver shows {count}, from 0 on"])
    cuda_libraries.load(gpus[0])


def provider(gpu: int, how: EngineOptions) -> Provider:
    """Return the execution provider for a GPU, by its number."""
    options = {
        "device_id": str(gpu),
        "enable_cuda_graph": str(int(how.cuda_graphs)),
        # The default, EXHAUSTIVE, times every algorithm for every shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(how.gpu_precision == "tf32")),
        # The default doubles the arena each time it grows.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if how.gpu_memory_mib is not None:
        options["gpu_mem_limit"] = str(how.gpu_memory_mib * 2**20)
    return CUDA, options


class GpuLane(Lane):
    """A thread that runs members on GPUs.

    Attributes:
        gpus: numbers of the GPUs, each of which runs a share of every batch.
    """

    def __init__(self, name: str, gpus: Sequence[int], precision: GpuPrecision = "fp32") -> None:
        """Start the thread. Its device names the GPUs, and the precision unless it is fp32."""
        device = f"cuda:{','.join(map(str, gpus))}"
        if precision != "fp32":
            device += f" in {precision}"
        super().__init__(name, device=device, cores=gpus)
        self.gpus = tuple(gpus)


def gpu_lanes(ensemble: Ensemble, gpus: Sequence[int], precision: GpuPrecision = "fp32") -> list[GpuLane]:
    """Make one lane per member, on the GPUs in turn.

    Each member has copies on several GPUs if that is needed for all GPUs to have equally many.
    """
    members = len(ensemble.members)
    copies = len(gpus) // gcd(members, len(gpus))
    turns = [[gpus[(copy * members + i) % len(gpus)] for copy in range(copies)] for i in range(members)]
    return [GpuLane(f"{ensemble.name}-{i}", turn, precision) for i, turn in enumerate(turns)]


class GpuMember(LoadedMember):
    """A member with a session on each of its lane's GPUs."""

    def __init__(self, member: Member, lane: GpuLane, replicas: Sequence[Replica]) -> None:
        """Take the replicas: the first for the lane's thread, each other for one of its own."""
        super().__init__(member, lane)
        self.replicas = list(replicas)
        self.threads = [ThreadPoolExecutor(1, f"{member.name}-gpu{gpu}") for gpu in lane.gpus[1:]]

    def call(self) -> "_Call":
        """Prepare a run."""
        return _Call(self)

    def close(self) -> None:
        """Free the GPUs' memory while no graph is being captured."""
        for thread in self.threads:
            # One that is stuck frees its session when it ends.
            thread.shutdown(wait=False, cancel_futures=True)
        with CAPTURES.using():
            self.replicas.clear()


class _Call:
    def __init__(self, loaded: GpuMember) -> None:
        self._loaded = loaded
        self._options = [ort.RunOptions() for _ in loaded.replicas]

    def infer(self, images: Images) -> NDArray[np.float32]:
        replicas = self._loaded.replicas
        ends = np.linspace(0, len(images), min(len(replicas), len(images)) + 1).astype(int).tolist()
        parts = [slice(*ends[i : i + 2]) for i in range(len(ends) - 1)]
        others: list[Future[NDArray[np.float32]]] = [
            thread.submit(self._run, index, images, part)
            for index, (thread, part) in enumerate(zip(self._loaded.threads, parts[1:], strict=False), 1)
        ]
        try:
            first = self._run(0, images, parts[0])
        finally:
            wait(others)
        return np.concatenate([first, *(other.result() for other in others)]) if others else first

    def _run(self, index: int, images: Images, part: slice) -> NDArray[np.float32]:
        with CAPTURES.using():
            return self._loaded.replicas[index].run(images, part, self._options[index])

    def stop(self) -> None:
        for options in self._options:
            options.terminate = True


class GpuLoader:
    """Loads members onto the GPUs that their lanes name."""

    def __init__(self, options: EngineOptions) -> None:
        """Prepare to load onto the options' GPUs.

        Raises:
            SettingsError: they cannot be used; see `check_gpus`.
        """
        check_gpus(options.gpus)
        self._options = options
        self._gpus = {number: cuda_driver.Gpu(number) for number in options.gpus}
        self._uploads = {number: Upload(gpu) for number, gpu in self._gpus.items()}

    def __call__(self, ensemble: Ensemble, member: Member, lane: Lane) -> GpuMember:
        """Load a member and warm it up; see `embedded.members.Load`.

        Raises:
            EngineError: also if a GPU has too little memory, or the member is quantised to int8.
        """
        assert isinstance(lane, GpuLane)
        _refuse_int8(ensemble)
        replicas = [self._load(ensemble, member, number) for number in lane.gpus]
        loaded = GpuMember(member, lane, replicas)
        try:
            # A graph belongs to the thread that captures it.
            for replica, thread in zip(replicas[1:], loaded.threads, strict=True):
                thread.submit(replica.warm_up).result()
            replicas[0].warm_up()
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            loaded.close()
            graphs = " as CUDA graphs" * self._options.cuda_graphs
            size = f"cannot be run in batches of up to {ensemble.max_batch_size}{graphs}"
            raise misfit(ensemble, member, f"{size}: {first_line(error)}") from error
        return loaded

    def _load(self, ensemble: Ensemble, member: Member, number: int) -> Replica:
        with CAPTURES.using():
            self._check_memory(ensemble, member, number)
            session = create_session(ensemble, member, 1, provider(number, self._options))
            graphs = self._options.cuda_graphs
            return Replica(session, ensemble, member, self._uploads[number], self._gpus[number], graphs)

    def _check_memory(self, ensemble: Ensemble, member: Member, number: int) -> None:
        """Refuse a load that does not fit, which would take memory from those that run."""
        weights = sum(size for _, size, *_ in member.stamps)
        batch = ensemble.max_batch_size * (int(np.prod(ensemble.preprocessing.shape)) + len(ensemble.labels))
        needed = (weights + batch * FLOAT + WORKSPACE_BYTES) >> 20
        free = self._gpus[number].free_bytes() >> 20
        if needed > free:
            reason = f"takes at least {needed} MiB of GPU {number}, which has {free} MiB free"
            raise misfit(ensemble, member, reason)
        limit = self._options.gpu_memory_mib
        if limit is not None and needed > limit:
            raise misfit(ensemble, member, f"takes at least {needed} MiB, but gpu_memory_mib is {limit}")


def _refuse_int8(ensemble: Ensemble) -> None:
    if ensemble.provenance.get("export", {}).get("precision") == "int8":
        raise EngineError(
            f"ensemble {ensemble.name} is int8, which ONNX Runtime cannot run on GPUs: export it in fp32 or "
            "fp16, or run it on the CPU"
        )
