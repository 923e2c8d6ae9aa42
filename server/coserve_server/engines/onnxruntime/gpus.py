"""Members on NVIDIA GPUs. Each session has a CUDA stream, so members on one GPU run concurrently.

Provider: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import LoadedMember, misfit
from coserve_server.engines.onnxruntime.cuda_graphs import CAPTURES, GRAPH_ID, NO_GRAPH, Graph
from coserve_server.engines.onnxruntime.sessions import Provider, create_session
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import SettingsError, first_line

CUDA = "CUDAExecutionProvider"
"""ONNX Runtime's name for the execution provider."""
DEVICE = "cuda"
"""ONNX Runtime's name for the device type."""


def check_gpus() -> None:
    """Check that ONNX Runtime supports GPUs.

    Raises:
        SettingsError: it does not.
    """
    available = ort.get_available_providers()
    if CUDA not in available:
        fault = (
            f"gpus: this ONNX Runtime has no {CUDA}, only {', '.join(available)}: install "
            "onnxruntime-gpu[cuda,cudnn] in place of onnxruntime"
        )
        raise SettingsError([fault])
    # CUDA's libraries may come from PyPI, where the system's loader does not look.
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def provider(gpu: int, graphs: bool = False) -> Provider:
    """Return the execution provider for a GPU.

    Args:
        gpu: the GPU's number.
        graphs: whether CUDA graphs will be captured.
    """
    return CUDA, {"device_id": str(gpu), "enable_cuda_graph": str(int(graphs))}


def gpu_device(gpu: int) -> str:
    """Return the name of a GPU in replies."""
    return f"{DEVICE}:{gpu}"


def gpu_lanes(ensemble: Ensemble, gpus: Sequence[int]) -> list[Lane]:
    """Make one lane per member, on the GPUs in turn."""
    return [
        Lane(f"{ensemble.name}-{i}", device=gpu_device(gpus[i % len(gpus)]))
        for i in range(len(ensemble.members))
    ]


class SharedInput:
    """A batch's copy on one GPU. The first member that needs it makes it; the others share it."""

    def __init__(self, gpu: int) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self._images: Images | None = None
        self._copy: ort.OrtValue | None = None

    def upload(self, images: Images) -> ort.OrtValue:
        """Return the copy of these images; it stays until another batch replaces it."""
        with self._lock:
            if self._copy is None or self._images is not images:
                self._copy = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), DEVICE, self._gpu)
                self._images = images
            return self._copy


class GpuMember(LoadedMember):
    """A member whose session runs on a GPU, and the lane that waits for it."""

    def __init__(
        self,
        member: Member,
        session: ort.InferenceSession,
        lane: Lane,
        shared_input: SharedInput,
        graphs: Mapping[int, Graph],
    ) -> None:
        super().__init__(member, lane)
        self.session = session
        self.binding = session.io_binding()
        self.shared_input = shared_input
        self.graphs = graphs

    def call(self) -> "_Call":
        """Prepare a run."""
        return _Call(self)

    def close(self) -> None:
        """Free the GPU's memory while no graph is being captured."""
        with CAPTURES.using():
            del self.session, self.binding, self.shared_input, self.graphs


class _Call:
    def __init__(self, loaded: GpuMember) -> None:
        self._loaded = loaded
        self._options = ort.RunOptions()

    def infer(self, images: Images) -> NDArray[np.float32]:
        graph = self._loaded.graphs.get(len(images))
        with CAPTURES.using():
            return self._run(images) if graph is None else graph.run(images, self._options)

    def _run(self, images: Images) -> NDArray[np.float32]:
        member = self._loaded.member
        binding = self._loaded.binding
        self._options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
        binding.bind_ortvalue_input(member.input_name, self._loaded.shared_input.upload(images))
        # Bind anew each time: the last run's output has that batch's size.
        binding.bind_output(member.output_name, "cpu")
        self._loaded.session.run_with_iobinding(binding, self._options)
        logits: NDArray[np.float32]
        (logits,) = binding.copy_outputs_to_cpu()
        return logits

    def stop(self) -> None:
        self._options.terminate = True


class GpuLoader:
    """Loads members onto the GPUs that their lanes name."""

    def __init__(self, gpus: Sequence[int], graphs: Sequence[int]) -> None:
        """Prepare to load onto these GPUs.

        Args:
            gpus: their numbers.
            graphs: batch sizes to capture as CUDA graphs.

        Raises:
            SettingsError: this ONNX Runtime has no support for GPUs.
        """
        check_gpus()
        self._gpus = {gpu_device(gpu): (gpu, SharedInput(gpu)) for gpu in gpus}
        self._graphs = graphs

    def __call__(self, ensemble: Ensemble, member: Member, lane: Lane) -> GpuMember:
        """Load a member and capture its graphs; see `embedded.members.Load`."""
        gpu, shared_input = self._gpus[lane.device]
        sizes = [size for size in self._graphs if size <= ensemble.max_batch_size]
        with CAPTURES.using():
            session = create_session(ensemble, member, lane.threads, provider(gpu, bool(sizes)))
        try:
            graphs = {size: Graph(session, ensemble, member, size, (DEVICE, gpu)) for size in sizes}
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            reason = f"cannot be captured as a CUDA graph: {first_line(error)}"
            raise misfit(ensemble, member, reason) from error
        return GpuMember(member, session, lane, shared_input, graphs)
